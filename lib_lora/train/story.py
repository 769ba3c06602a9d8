"""What the events of a run tell, read on from where the last reading ended."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lib_lora.train.jobs import ENDINGS, EVENTS, QUEUED, Event, Run, read_event

POINTS = 400  # figures kept for a plot
LINES = 200  # of the log
MEMORY = 0.98  # how much of the loss's running mean stays at each step
TAIL = 1 << 16  # bytes at the end of a long file that tell where a run stands


@dataclass(frozen=True)
class Point:
    """One step's figures; `smooth` is the loss's running mean."""

    step: int
    loss: float
    smooth: float
    lr: float


@dataclass(frozen=True)
class Sample:
    """A picture drawn on the way."""

    step: int
    prompt: str
    path: Path


@dataclass(frozen=True)
class Seen:
    """A story as it stood at one moment. `now` holds the latest value of each fact, `last` is the latest event.

    `base` is the name of the model that the run was queued for, "" where that is not known.
    """

    state: str
    now: Event
    last: Event
    points: tuple[Point, ...]
    samples: tuple[Sample, ...]
    log: tuple[str, ...]
    base: str = ""


class Curve:
    """Points of a run of any length, at most `POINTS`, with the first and the last; and the loss's running mean."""

    def __init__(self) -> None:
        self._kept: list[Point] = []
        self._last: Point | None = None
        self._stride = 1
        self._mean = self._weight = 0.0

    def add(self, step: int, loss: float, lr: float) -> None:
        """The figures of the next step."""
        self._mean = MEMORY * self._mean + (1 - MEMORY) * loss
        self._weight = MEMORY * self._weight + (1 - MEMORY)
        self._last = Point(step, loss, self._mean / self._weight, lr)
        first = self._kept[0].step if self._kept else step
        if (step - first) % self._stride == 0:
            self._kept.append(self._last)
        if len(self._kept) >= POINTS:
            self._stride *= 2
            self._kept = [point for point in self._kept if (point.step - first) % self._stride == 0]

    def back_to(self, step: int) -> None:
        """Forget what came after a step: it is trained again."""
        self._kept = [point for point in self._kept if point.step <= step]
        self._last = self._kept[-1] if self._kept else None
        self._stride = self._stride if self._kept else 1
        self._weight = 1 - MEMORY ** (step - self._kept[0].step + 1) if self._last else 0.0
        self._mean = self._last.smooth * self._weight if self._last else 0.0

    def points(self) -> tuple[Point, ...]:
        """Oldest first."""
        last = (self._last,) if self._last is not None and self._last not in self._kept[-1:] else ()
        return (*self._kept, *last)


class Story:
    """Where a run stands and how it came there. `read()` brings it up to date and costs what is new."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._path = run.folder / EVENTS
        self._begin()

    def _begin(self) -> None:
        self._offset = 0
        self._file: tuple[int, int] | None = None
        self.count = 0  # of events
        self.state = "new"  # as the events tell it, whether or not the process lives
        self.now: Event = {}  # the latest value of each fact
        self.last: Event = {}
        self.made: float | None = None
        self.base = ""  # the name of the model it was queued for
        self.curve = Curve()
        self.samples: dict[str, Sample] = {}
        self.log: list[str] = []

    def read(self) -> Story:
        """Read what was written since."""
        try:
            with self._path.open("rb") as file:
                about = os.fstat(file.fileno())
                key = (about.st_dev, about.st_ino)
                if self._file not in (None, key) or about.st_size < self._offset:
                    self._begin()  # another run in a folder of the same name
                self._file = key
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return self
        whole = data.rfind(b"\n") + 1  # what follows is not complete yet
        self._offset += whole
        self.tell(event for line in data[:whole].split(b"\n") if (event := read_event(line)) is not None)
        return self

    def brief(self) -> Story:
        """The same from the end of a long file alone: state, step and message, without whole curves and logs."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                lines = [file.readline()]  # the first one tells when the run was made
                file.seek(max(size - TAIL, len(lines[0])))
                rest = file.read()
        except FileNotFoundError:
            return self
        lines += rest[: rest.rfind(b"\n") + 1].split(b"\n")
        self.tell(event for line in lines if (event := read_event(line)) is not None)
        return self

    def tell(self, events: Iterable[Event]) -> None:
        """What happened next."""
        for event in events:
            self.count += 1
            self._tell(event)

    def _tell(self, event: Event) -> None:
        kind = event["type"]
        if self.made is None:
            self.made = float(event.get("time", 0.0))
        self.base = event.get("base", self.base)
        self.state = kind if kind in (QUEUED, *ENDINGS) else "running"
        self.last = event
        if kind == "started":
            self.now = {}
            self.curve.back_to(event["step"])
        self.now.update(event if None not in event.values() else {k: v for k, v in event.items() if v is not None})
        if kind == "step":  # nearly all of them are
            if event.get("loss") is not None:
                self.curve.add(event["step"], event["loss"], event["lr"])
            return
        if kind == "sample":
            path = Path(event["picture"])
            self.samples.pop(path.name, None)
            self.samples[path.name] = Sample(event["step"], event["prompt"], path)
        lines = lines_of(event)
        if lines:
            clock = time.strftime("%H:%M:%S", time.localtime(event.get("time", 0.0)))
            self.log = [*self.log, *(f"{clock} {line}" for line in lines)][-LINES:]

    def seen(self) -> Seen:
        """What it tells by now."""
        samples = tuple(self.samples.values())
        points = self.curve.points()
        return Seen(self.state, dict(self.now), self.last, points, samples, tuple(self.log), self.base)

    @property
    def message(self) -> str:
        """How the run ended, in words; "" while it has not."""
        return str(self.last.get("message", "")) if self.state in ENDINGS else ""


def events_after(run: Run, offset: int, most: int) -> tuple[list[Event], int]:
    """The events written behind a place in the file, about so many bytes of them, and the place behind those."""
    try:
        with (run.folder / EVENTS).open("rb") as file:
            file.seek(offset)
            data = file.read(most)
            data += b"" if b"\n" in data else file.readline()  # one event may be longer
    except FileNotFoundError:
        return [], offset
    whole = data.rfind(b"\n") + 1
    events = [event for line in data[:whole].split(b"\n") if (event := read_event(line)) is not None]
    return events, offset + whole


def lines_of(event: Event) -> list[str]:
    """What an event is to people; nothing for steps."""
    kind, step = event["type"], event.get("step", 0)
    if kind == "started":
        return _began(event)
    if kind == "saved":
        return [f"Step {step}: {Path(event['path']).name} is written."]
    if kind == "sample":
        return [f"Step {step}: a sample picture is drawn."]
    if kind == "finished":
        return [f"Finished after {step} steps."]
    if kind == QUEUED:
        return ["In the queue."]
    if kind == "preparing" and event.get("done") == event.get("total"):
        return [f"{event['total']} pictures are ready."] if event.get("total") else []
    return [str(event["message"])] if event.get("message") else []


def _began(event: Event) -> list[str]:
    first, steps = event["step"], event["steps"]
    lines = [f"Training goes on after step {first} of {steps}." if first else f"Training begins: {steps} steps."]
    words = {"pictures": "pictures", "class_pictures": "class pictures", "parameters": "parameters trained"}
    told = [f"{event[name]} {what}" for name, what in words.items() if event.get(name)]
    lines += [", ".join(told) + "."] if told else []
    lines += [f"Left out: {reason}" for reason in event.get("skipped", ())]
    return lines + [str(note) for note in event.get("notes", ())]
