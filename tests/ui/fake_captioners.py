"""Captioners that look at nothing: what they say, need and do wrong can be set."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass
class FakeCaptioner:
    """Says `text`, in which {n} is the number of the picture. `gate`, if given, must be set before each caption."""

    name: str = "Fake (tags)"
    text: str = "dog {n}, grass"
    why_not: str = ""
    fetches: str = ""
    error: Exception | None = None
    gate: threading.Semaphore | None = None
    seen: list[Any] = field(default_factory=list)
    opened_now: bool = False

    def available(self) -> str:
        return self.why_not

    def downloads(self) -> str:
        return self.fetches

    @contextmanager
    def opened(self) -> Iterator[Any]:
        self.opened_now = True
        try:
            yield self._describe
        finally:
            self.opened_now = False

    def _describe(self, picture: Image.Image) -> str:
        assert self.opened_now and picture.mode == "RGB"
        if self.gate is not None:
            assert self.gate.acquire(timeout=20)
        if self.error is not None and self.seen:
            raise self.error
        self.seen.append(picture.size)
        return self.text.format(n=len(self.seen))
