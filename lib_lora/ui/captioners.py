"""What writes captions by looking at pictures: one protocol for every host, and a run in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lib_lora.errors import BadConfig, BadDataset, LoraError
from lib_lora.train.caption_edit import Edit, edited
from lib_lora.train.caption_files import CaptionFiles
from lib_lora.train.caption_store import Caption, Rewriting, caption_files
from lib_lora.train.images import open_picture

if TYPE_CHECKING:
    from PIL import Image

Describe = Callable[["Image.Image"], str]
MODES = {"missing": "Only pictures without a caption", "append": "Add to the captions", "replace": "Replace captions"}


class Captioner(Protocol):
    """Writes a caption for a picture. `name` is unique among those offered."""

    name: str

    def available(self) -> str:
        """Why it cannot be used here; "" if it can."""

    def downloads(self) -> str:
        """What it fetches from the internet at its first use, for the user to agree; "" if all is there."""

    def opened(self) -> AbstractContextManager[Describe]:
        """While open: a function from an RGB picture to its caption. Alone on the machine's memory; all put back after.

        It raises LoraError with a message for the user.
        """


@dataclass(frozen=True)
class Progress:
    """How far a run is. `state`: "", running, finished, stopped or failed."""

    state: str = ""
    name: str = ""
    done: int = 0
    total: int = 0
    message: str = ""
    folder: Path = Path()


class CaptionRun:
    """One run at a time, in a thread of its own; every page sees the same one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._progress = Progress()
        self._thread: threading.Thread | None = None

    def progress(self) -> Progress:
        """How far it is."""
        with self._lock:
            return self._progress

    def stop(self) -> None:
        """End after the picture in hand; what is written stays."""
        self._stop.set()

    def start(
        self, captioner: Captioner, folder: Path, pictures: Sequence[Caption], mode: str, begin: str = ""
    ) -> None:
        """Write captions of these pictures. Raises BadConfig if a run is going on or there is nothing to do."""
        if mode not in MODES:
            raise BadConfig(f"{mode!r} is no way to write captions; choose one of {', '.join(MODES)}")
        chosen = [one for one in pictures if mode != "missing" or not one.text]
        if not chosen:
            raise BadConfig("every picture has a caption; choose to add to them, or to replace them")
        with self._lock:
            if self._progress.state == "running":
                raise BadConfig(f"{self._progress.name} is writing captions already; wait for it or stop it")
            self._progress = Progress("running", captioner.name, 0, len(chosen), "", folder)
        self._stop.clear()
        self._thread = threading.Thread(
            target=self._run, args=(captioner, chosen, mode, begin), daemon=True, name="lorakit-captions"
        )
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Until the run ends."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self, captioner: Captioner, chosen: Sequence[Caption], mode: str, begin: str) -> None:
        end: dict[str, object] = {"state": "failed", "message": "it ended with an error; the console shows where"}
        try:
            end = self._write(captioner, chosen, mode, begin)
        except LoraError as error:
            end = {"state": "failed", "message": str(error)}
        finally:
            self._set(**end)

    def _write(self, captioner: Captioner, chosen: Sequence[Caption], mode: str, begin: str) -> dict[str, object]:
        """How it ended: state and message. Pictures that cannot be read are left out and named."""
        rewriting = Rewriting(self._progress.folder, f"Captions by {captioner.name}")
        broken: list[str] = []
        with captioner.opened() as describe:
            for number, one in enumerate(chosen, start=1):
                if self._stop.is_set():
                    return {"state": "stopped"}
                try:
                    picture = open_picture(one.picture)
                except BadDataset:
                    broken.append(one.picture.name)
                    continue
                text = " ".join(describe(picture).split())
                old = _now(one)
                if mode != "missing" or not old:  # somebody may have written one meanwhile
                    rewriting.write(caption_files({one.picture: _joined(old, text, mode, begin)}))
                self._set(done=number)
        return {"state": "finished", "message": f"left out: {', '.join(broken)}" if broken else ""}

    def _set(self, **changed: object) -> None:
        with self._lock:
            self._progress = replace(self._progress, **changed)  # type: ignore[arg-type]


def _now(one: Caption) -> str:
    """The caption as it is now."""
    beside = CaptionFiles(one.picture.parent, use_tables=False).beside(one.picture)
    return "\n".join(beside) or (one.text if one.kept_in == "table" else "")


def _joined(old: str, new: str, mode: str, begin: str) -> str:
    """The caption after a run: the new words after the old ones, without repeated tags, the beginning put before it."""
    text = edited([f"{old}, {new}"], Edit("dedupe"))[0] if mode == "append" and old else new
    return edited([text], Edit("prepend", begin))[0] if begin.strip() else text
