"""A queue's order on disk: a file that one living program holds, and what programs that are gone left in theirs."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import IO

from lib_lora.errors import BadFile
from lib_lora.files.tensors import atomic_file
from lib_lora.train.locks import hold

log = logging.getLogger(__name__)
Order = tuple[str, list[str]]  # the run in hand, and what waits


class QueueFile:
    """`queue.json` in a folder, or queue-2.json, ... where other programs hold the ones before.

    A folder that cannot be written costs only the memory of the order; that is logged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Path | None = None
        self._held: IO[bytes] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file, self._held = self._free()
        except OSError as error:
            log.warning("the queue cannot be kept in %s: %s; what waits is lost when this program ends", folder, error)

    def take_over(self) -> list[Order]:
        """What was kept here before, then what nobody holds any more, whose files are removed."""
        if self._file is None:
            return []
        found = [_read(self._file)]
        for path in sorted(self._folder.glob("queue*.json")):
            if path == self._file:
                continue
            with (self._folder / f"{path.stem}.lock").open("a+b") as lock:
                if hold(lock):
                    found.append(_read(path))
                    path.unlink(missing_ok=True)
        return [order for order in found if order is not None]

    def keep(self, hand: str, waiting: Sequence[str]) -> None:
        """Write the order, atomically."""
        if self._file is None:
            return
        try:
            with atomic_file(self._file) as file:
                file.write(json.dumps({"hand": hand, "waiting": list(waiting)}, ensure_ascii=False).encode())
        except BadFile as error:
            log.warning("the queue could not be kept: %s", error)

    def release(self) -> None:
        """Leave the file to whoever comes next; nothing is written any more."""
        self._file = None
        if self._held is not None:
            self._held.close()  # and with it the lock

    def _free(self) -> tuple[Path, IO[bytes]]:
        for number in count(1):
            stem = "queue" if number == 1 else f"queue-{number}"
            lock = (self._folder / f"{stem}.lock").open("a+b")
            if hold(lock):
                return self._folder / f"{stem}.json", lock
            lock.close()
        raise AssertionError("there is always another number")


def _read(path: Path) -> Order | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return str(kept["hand"]), [str(id) for id in kept["waiting"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the queue in %s cannot be read (%s); its runs are in the list of runs", path, error)
        return None
