"""Draws a comparison in the background, picture by picture: it can be watched, stopped and looked at later."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lib_lora.errors import BadConfig, LoraError
from lib_lora.train.compare import Cell, Grid, prompt_with, write_sheet
from lib_lora.train.drawable import Drawable
from lib_lora.ui.trainer import Trainer

log = logging.getLogger(__name__)
BUSY = "a comparison is being drawn; wait for it or stop it"
NEWS_S = 60.0  # seconds for which it is told that a comparison is ready


@dataclass(frozen=True)
class Drawing:
    """Where the comparison in hand, or the latest one, stands. `message` is for people."""

    run: str = ""
    grid: str = ""
    done: int = 0
    total: int = 0
    active: bool = False
    message: str = ""


class Comparer:
    """Draws one comparison at a time."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._now = Drawing()
        self._ended = 0.0

    @property
    def now(self) -> Drawing:
        """Where it stands. That all went well is no news after a while."""
        with self._lock:
            old = not self._now.active and time.monotonic() - self._ended > NEWS_S
            return replace(self._now, message="") if old and self._now.done == self._now.total else self._now

    def start(self, run: str, create: Callable[[], Grid], files: Mapping[str, Drawable]) -> None:
        """Draw the grid that `create` makes of the run; `files` by its labels. Raises BadConfig while one is drawn."""
        with self._lock:
            if self._now.active:
                raise BadConfig(BUSY)
            grid = create()
            self._stop.clear()
            self._now = Drawing(run, grid.name, 0, len(grid.cells()), True)
            self._thread = threading.Thread(target=self._work, args=(grid, dict(files)), daemon=True)
            self._thread.start()

    def stop(self) -> str:
        """Stop after the picture in hand; what is drawn stays."""
        self._stop.set()
        return "Stopping after this picture." if self.now.active else "Nothing is being drawn."

    def wait(self, seconds: float | None = None) -> Drawing:
        """The state once the drawing has ended or the time is over."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self.now

    def _work(self, grid: Grid, files: Mapping[str, Drawable]) -> None:
        message = "the comparison ended unexpectedly; the console shows why"
        try:
            try:
                message = self._draw(grid, files)
            finally:
                if self.now.done:
                    write_sheet(grid)
        except LoraError as error:
            log.warning("comparison: %s", error)
            message = str(error)
        finally:
            self._ended = time.monotonic()
            self._change(active=False, message=message)

    def _draw(self, grid: Grid, files: Mapping[str, Drawable]) -> str:
        """Draw every picture; what to tell in the end."""
        cells, base = grid.cells(), ""
        for done, cell in enumerate(cells):
            if self._stop.is_set():
                return f"Stopped after {done} of {len(cells)} pictures."
            picture, now = self._picture(grid, cell, files), self._trainer.base().name
            if base not in ("", now):
                return (
                    f"Stopped after {done} of {len(cells)} pictures: they are of the checkpoint {base!r}, and {now!r} "
                    "was chosen meanwhile; choose the first one again, then compare anew."
                )
            base = now
            grid.add(cell, picture)
            self._change(done=done + 1)
        return f"The comparison is ready; it is also kept as {grid.sheet.name!r} in the run's folder."

    def _picture(self, grid: Grid, cell: Cell, files: Mapping[str, Drawable]) -> Any:
        """One of them, with the network of its label; at strength 0 with none."""
        used = files[cell.label] if cell.strength else Drawable()
        name, prompt, applied = f"lorakit-{cell.row}", cell.prompt, {}
        if used.network is not None:
            prompt, applied = prompt_with(cell.prompt, name, cell.strength), {name: used.network}
        (picture,) = self._trainer.draw(
            [prompt], grid.seed, grid.steps, grid.cfg, grid.negative, files=applied, words=used.words
        )
        return picture

    def _change(self, **values: object) -> None:
        with self._lock:
            self._now = Drawing(**{**vars(self._now), **values})  # type: ignore[arg-type]
