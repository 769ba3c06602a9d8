"""Jobs one after another in the background; what waits is kept on disk, in a folder of the program's own."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lib_lora.errors import BadConfig, BadFile, Cancelled, LoraError, Paused
from lib_lora.train.config import JobConfig
from lib_lora.train.control import Control
from lib_lora.train.history import History
from lib_lora.train.jobs import ENDINGS, QUEUED, Event, Run, stamp
from lib_lora.train.queue_file import QueueFile

log = logging.getLogger(__name__)
Train = Callable[[Run, Control], object]
UNEXPECTED = "training ended unexpectedly; the console shows why"
RESUMABLE = ("paused", "cancelled", "failed", "interrupted", QUEUED)


@dataclass(frozen=True)
class QueueState:
    """`hand` is the run in hand, or the latest one, "" if there was none; `waiting` the next one first.

    `busy`: the run in hand is being trained, and `asked` says what it was asked for: "", "pause", "cancel" or "save".
    `halted`: nothing begins by itself until `resume`.
    """

    hand: str = ""
    waiting: tuple[str, ...] = ()
    busy: bool = False
    asked: str = ""
    halted: bool = False


class JobQueue:
    """Trains runs of `history`, one at a time, by `train(run, control)`, which returns when the run has ended.

    `folder` keeps the order. Of several programs with the same folder each has a queue of its own; what a program that
    is gone left behind is taken over by the next one to start, and waits for `resume`. A job that fails does not stop
    the others.
    """

    def __init__(self, folder: Path, history: History, train: Train) -> None:
        self._history, self._train = history, train
        self._lock = threading.RLock()
        self._control: Control | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._hand, self._waiting, self._halted = "", list[str](), False
        self._file = QueueFile(folder)
        self._take_over()

    @property
    def closed(self) -> bool:
        """Whether another has taken its place, or will."""
        return self._closed

    def state(self) -> QueueState:
        """How the queue stands."""
        with self._lock:
            control, asked = self._control, ""
            if control is not None:
                asked = "cancel" if control.cancelled() else "pause" if control.paused() else ""
                asked = asked or ("save" if control.saving() else "")
            return QueueState(self._hand, tuple(self._waiting), control is not None, asked, self._halted)

    def submit(self, job: JobConfig, base: str = "") -> str:
        """Put a job at the end; its run's folder is made now. The run's id. Raises BadConfig.

        `base` is the name of the model it is for, noted in the run's events.
        """
        run = Run.create(job)
        try:
            _note(run, stamp(QUEUED, folder=str(run.folder), **({"base": base} if base else {})))
        except BadFile:
            shutil.rmtree(run.folder, ignore_errors=True)  # nothing is in it yet
            raise
        with self._lock:
            if not self._waiting and self._state_of(self._hand) != "paused":
                self._halted = False  # nothing is left of what it was halted for
            self._waiting.append(run.folder.name)
            self._keep()
            self._begin()
        return run.folder.name

    def pause(self) -> bool:
        """Stop the run in hand after its step, and the queue with it; False if none is being trained."""
        with self._lock:
            if self._control is None:
                return False
            self._control.pause()
            self._halted = True
            self._keep()
            return True

    def resume(self, id: str = "", job: JobConfig | None = None) -> str:
        """Go on: with a run of that id, or with the one in hand, and with the queue; the id that begins next.

        `job` is what that run goes on with in place of its own. Raises BadConfig if there is nothing to go on with, or
        the run is being trained, or finished and no other job is given.
        """
        with self._lock:
            busy = self._control is not None
            if not id and not busy and self._state_of(self._hand) in ("paused", "interrupted"):
                id = self._hand
            if id and id not in self._waiting:
                self._put_back(id, 0 if not busy else len(self._waiting), job)
            elif not id and not self._waiting:
                raise BadConfig("nothing is paused and nothing waits; choose a run of the list to go on with")
            elif id and not busy:
                self._waiting.remove(id)
                self._waiting.insert(0, id)
            if id and job is not None:
                self._history.open(id).plan(job)
            self._halted = False
            next_one = id or self._waiting[0]
            self._keep()
            self._begin()
            return next_one

    def cancel(self, id: str = "") -> str:
        """End the run in hand after its step, or take a waiting or paused one out; "stopping", "removed" or "".

        The state of what was trained is kept in any case. "" if there is nothing to cancel.
        """
        with self._lock:
            if self._control is not None and id in ("", self._hand):
                self._control.cancel()
                self._halted = False
                return "stopping"
            if id in self._waiting:
                self._end(id, "taken out of the queue")
                self._waiting.remove(id)
                self._keep()
            elif self._hand and id in ("", self._hand) and self._state_of(self._hand) in ("paused", "interrupted"):
                self._halted = False
                self._end(self._hand, "cancelled while it was paused; resume to go on")
                self._begin()
            else:
                return ""
            return "removed"

    def remove(self, id: str) -> bool:
        """Take a waiting run out of the queue; False if it does not wait."""
        with self._lock:
            return id in self._waiting and self.cancel(id) == "removed"

    def forget(self, id: str) -> None:
        """Delete a run's folder. Raises BadConfig if it waits, is being trained, or there is none."""
        with self._lock:  # or it could begin meanwhile
            if id in self._waiting or (self._control is not None and id == self._hand):
                raise BadConfig(f"run {id!r} waits or is being trained; cancel it first")
            self._history.forget(id)

    def save_now(self) -> bool:
        """Keep the network of the run in hand after its step; False if none is being trained."""
        with self._lock:
            if self._control is None:
                return False
            self._control.save()
            return True

    def move(self, id: str, by: int) -> None:
        """Move a waiting run up (negative) or down. Raises BadConfig if it does not wait."""
        with self._lock:
            if id not in self._waiting:
                raise BadConfig(f"run {id!r} does not wait in the queue; choose one that does")
            place = self._waiting.index(id)
            self._waiting.remove(id)
            self._waiting.insert(min(max(place + by, 0), len(self._waiting)), id)
            self._keep()

    def close(self, seconds: float = 0.0) -> None:
        """Pause what is being trained and begin nothing more; waits so long for the step's end."""
        with self._lock:
            self._closed, thread = True, self._thread
            if self._control is not None:
                self.pause()
            self._file.release()
        if thread is not None and seconds:
            thread.join(seconds)

    def wait(self, seconds: float | None = None) -> QueueState:
        """The state once the run in hand now has ended, or the time is over."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return self.state()

    def _put_back(self, id: str, place: int, job: JobConfig | None) -> None:
        run, facts = self._history.open(id), self._history.facts(id)
        if self._control is not None and id == self._hand:
            raise BadConfig(f"run {id!r} is being trained; there is nothing to resume")
        if facts.state == "running":
            raise BadConfig(f"run {id!r} is being trained by another program; wait for it or cancel it there")
        if facts.state not in RESUMABLE and job is None:
            raise BadConfig(f"run {id!r} is {facts.state}; repeat it with more steps to train it further")
        _note(run, stamp(QUEUED, folder=str(run.folder), step=facts.step, steps=facts.steps or None))
        self._waiting.insert(place, id)

    def _begin(self) -> None:
        """Start the next run if one may start. Under the lock."""
        if self._control is not None or self._halted or self._closed:
            return
        while self._waiting:
            self._hand = self._waiting.pop(0)
            self._keep()
            try:
                run = self._history.open(self._hand)
            except BadConfig as error:  # deleted by hand
                log.warning("%s", error)
                continue
            self._control = Control()
            self._thread = threading.Thread(
                target=self._work, args=(run, self._control), name="lorakit-train", daemon=True
            )
            self._thread.start()
            return

    def _work(self, run: Run, control: Control) -> None:
        told, kind = UNEXPECTED, "failed"
        try:
            self._train(run, control)
            told, kind = "", "finished"
        except Paused as error:
            told, kind = str(error), "paused"
        except Cancelled as error:
            told, kind = str(error), "cancelled"
        except LoraError as error:
            log.error("training %s: %s", run.folder.name, error)
            told = str(error)
        finally:  # also after an error nobody foresaw; its traceback goes to the console
            self._told(run, kind, told)
            with self._lock:
                self._control = self._thread = None
                self._halted = kind == "paused" or (self._halted and bool(self._waiting))
                self._keep()
                self._begin()

    def _told(self, run: Run, kind: str, message: str) -> None:
        """See to it that the run's events tell its end, also where the engine did not come to tell it."""
        told = (kind,) if kind in ("failed", "finished") else ENDINGS
        try:
            if not run.is_held() and self._history.facts(run.folder.name).state not in told:
                run.append(stamp(kind, message=message))
        except (OSError, BadConfig) as error:  # a full disk, or the folder is gone
            log.error("the end of %s could not be noted: %s", run.folder, error)

    def _end(self, id: str, message: str) -> None:
        try:
            run = self._history.open(id)
        except BadConfig:  # deleted by hand
            return
        if not run.is_held():
            _note(run, stamp("cancelled", message=message))

    def _state_of(self, id: str) -> str:
        try:
            return self._history.state_of(id)
        except BadConfig:
            return ""

    def _take_over(self) -> None:
        """Begin with what was kept on disk, as far as there are such runs."""
        for hand, waiting in self._file.take_over():
            self._hand = self._hand or (hand if self._state_of(hand) else "")
            waiting = list(dict.fromkeys([hand, *waiting]))  # the one in hand waits if it was killed before it began
            self._waiting += [id for id in waiting if self._state_of(id) == QUEUED and id not in self._waiting]
        self._halted = bool(self._waiting) or self._state_of(self._hand) == "paused"
        self._keep()

    def _keep(self) -> None:
        self._file.keep(self._hand, self._waiting)


def _note(run: Run, event: Event) -> None:
    """Write an event. Raises BadFile where the engine would see an OSError."""
    try:
        run.append(event)
    except OSError as error:
        raise BadFile(f"{str(run.folder)!r} cannot be written: {error.strerror!r}; free some space") from error
