"""What long preparations ask and tell while they go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lib_lora.errors import Cancelled


def _no() -> bool:
    return False


def _silent(*facts: object) -> None:
    pass


@dataclass(frozen=True)
class Watch:
    """`cancelled()` is asked between pieces of work; `progress(done, all)` and `tell(message)` are called."""

    cancelled: Callable[[], bool] = _no
    progress: Callable[[int, int], object] = _silent
    tell: Callable[[str], object] = _silent

    def check(self, what: str) -> None:
        """Raises Cancelled if the user asked for it."""
        if self.cancelled():
            raise Cancelled(f"stopped while {what}; start again when you like")
