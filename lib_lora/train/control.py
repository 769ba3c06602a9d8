"""What a running job is asked for from outside: to end, to pause, to keep the network as it is now."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event


def _never() -> bool:
    return False


class Control:
    """Wishes to one run, from any thread; the engine looks at them before every step.

    `stop` is asked as well, by whoever trains: once it says yes, the run is cancelled. Of several wishes to stop,
    cancelling wins over pausing.
    """

    def __init__(self, stop: Callable[[], bool] = _never) -> None:
        self._stop, self._halt = stop, _never
        self._cancel, self._pause, self._save = Event(), Event(), Event()

    @classmethod
    def of(cls, asked: Callable[[], bool] | Control) -> Control:
        """`asked` itself, or a control that cancels when it says so."""
        return asked if isinstance(asked, Control) else cls(asked)

    def pause_when(self, halt: Callable[[], bool]) -> None:
        """Pause as soon as `halt` says so."""
        self._halt = halt

    def cancel(self) -> None:
        """End after the current step; state and network are kept."""
        self._cancel.set()

    def pause(self) -> None:
        """Stop after the current step; the state is kept."""
        self._pause.set()

    def save(self) -> None:
        """Keep the network after the current step, and go on."""
        self._save.set()

    def saved(self) -> None:
        """The network was kept."""
        self._save.clear()

    def __call__(self) -> bool:
        """Whether the run is to stop, for either reason."""
        return self.cancelled() or self.paused()

    def cancelled(self) -> bool:
        """Whether the run is to end."""
        if not self._cancel.is_set() and self._stop():
            self._cancel.set()  # for good: who stops a run says so once
        return self._cancel.is_set()

    def paused(self) -> bool:
        """Whether the run is to pause, and not to end."""
        if not self._pause.is_set() and self._halt():
            self._pause.set()
        return self._pause.is_set() and not self.cancelled()

    def saving(self) -> bool:
        """Whether the network is to be kept."""
        return self._save.is_set()
