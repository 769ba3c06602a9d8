"""Run folders: job, events, samples, checkpoints; whole after any kill, readable by any process."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lib_lora.errors import BadConfig
from lib_lora.files.tensors import atomic_file
from lib_lora.train.config import JobConfig, dump_job, load_job
from lib_lora.train.locks import hold, let_go

Event = dict[str, Any]
JOB, EVENTS, LOCK, STATE = "job.toml", "events.jsonl", "run.lock", "state.safetensors"
NEXT = "next.toml"  # the job to go on with, until training has begun with it
QUEUED = "queued"
ENDINGS = ("finished", "failed", "cancelled", "paused")
HOLD_PATIENCE = 0.5  # seconds: whoever only looks whether a run is held, holds it for a moment


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    `state` is "new", "queued", "running", "paused", "finished", "failed", "cancelled", or "interrupted" for a process
    that died.
    `eta_s` is in seconds. `file` is the finished network, `message` what went wrong.
    """

    state: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    eta_s: float | None = None
    file: str | None = None
    message: str | None = None


class Run:
    """A run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.samples = folder / "samples"
        self.checkpoints = folder / "checkpoints"
        self.state = self.checkpoints / STATE

    @classmethod
    def create(cls, job: JobConfig) -> Run:
        """A new folder `<output.folder>/<output.name>`, with -2, -3, ... if taken. Raises BadConfig if impossible."""
        parent = Path(os.path.expanduser(job.output.folder))
        number = 1
        while True:
            folder = parent / (job.output.name if number == 1 else f"{job.output.name}-{number}")
            try:
                parent.mkdir(parents=True, exist_ok=True)
                folder.mkdir()
                break
            except FileExistsError:
                number += 1
                if not parent.is_dir():
                    raise BadConfig(f"output.folder = {job.output.folder!r} is a file; give a folder") from None
            except OSError as error:
                raise BadConfig(
                    f"output.folder = {job.output.folder!r} cannot be used ({error}); give another"
                ) from None
        run = cls(folder)
        run.samples.mkdir()
        run.checkpoints.mkdir()
        run.write_job(job)
        return run

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """The run in an existing folder. Raises BadConfig if there is none."""
        run = cls(Path(folder))
        if not (run.folder / JOB).is_file():
            raise BadConfig(f"{str(folder)!r} is not a run's folder (no {JOB} in it); see the folders in output.folder")
        return run

    def job(self) -> JobConfig:
        """The job the folder was made for."""
        return load_job(self.folder / JOB)

    def write_job(self, job: JobConfig) -> None:
        """Write job.toml, atomically."""
        with atomic_file(self.folder / JOB) as file:
            file.write(dump_job(job).encode())

    def planned(self) -> JobConfig:
        """The job to train next: the one that was planned, or else the folder's own."""
        return load_job(self.folder / NEXT) if (self.folder / NEXT).is_file() else self.job()

    def plan(self, job: JobConfig | None) -> None:
        """Go on with another job the next time; None: with the folder's own."""
        if job is None:
            (self.folder / NEXT).unlink(missing_ok=True)
            return
        with atomic_file(self.folder / NEXT) as file:
            file.write(dump_job(job).encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the system lets go when the process dies. Raises BadConfig if it is held."""
        with (self.folder / LOCK).open("a+b") as file:
            if not _hold(file):
                raise BadConfig(f"run {str(self.folder)!r} is being trained already; wait for it or cancel it")
            try:
                self._mend_events()
                self._clear()
                yield
            finally:
                let_go(file)

    def is_held(self) -> bool:
        """Whether a living process is training this run."""
        path = self.folder / LOCK
        if not path.exists():
            return False
        with path.open("a+b") as file:
            free = hold(file)
            if free:
                let_go(file)
            return not free

    def append(self, event: Event) -> None:
        """Add one event as a line; it is on its way to the disk when this returns."""
        line = json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with (self.folder / EVENTS).open("a+b") as file:
            if file.tell() and not _ends_with_a_line(file):  # the disk was full then
                line = b"\n" + line
            file.write(line)

    def events(self) -> list[Event]:
        """All events so far, oldest first; lines cut off by a kill, a full disk or lost power are left out."""
        path = self.folder / EVENTS
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is not complete yet
        return [event for line in lines if (event := read_event(line)) is not None]

    def made(self, path: Path) -> bool:
        """Whether a file is one that this run finished, now or when it was shorter."""
        if not path.is_file():
            return False
        own = self.folder / path.name
        sums = {event.get("sha256") for event in self.events()}
        return (own.is_file() and filecmp.cmp(own, path, shallow=False)) or file_digest(path) in sums

    def began(self) -> float:
        """When the run first started, in seconds since 1970; now, if it has not yet."""
        return next((float(event["time"]) for event in self.events() if event["type"] != QUEUED), time.time())

    def status(self) -> Status:
        """Where the run stands, from its events."""
        known: Event = {}
        state = "new"
        for event in self.events():
            if event["type"] == "started":
                known = {}
            known |= {name: event[name] for name in Status.__dataclass_fields__ if event.get(name) is not None}
            state = event["type"] if event["type"] in (QUEUED, *ENDINGS) else "running"
        if state == "running" and not self.is_held():
            state = "interrupted"
        return Status(**{**known, "state": state})

    def _clear(self) -> None:
        """Remove what a kill left half written: nobody else writes here, and a state may be as large as the base."""
        for path in self.folder.rglob(".*.tmp"):
            with suppress(OSError):
                path.unlink()

    def _mend_events(self) -> None:
        path = self.folder / EVENTS
        if path.exists():
            data = path.read_bytes()
            if not data.endswith(b"\n"):
                with path.open("r+b") as file:
                    file.truncate(data.rfind(b"\n") + 1)


def list_runs(folder: Path | str) -> list[Run]:
    """The runs in a folder, newest first."""
    root = Path(folder)
    found = [Run(path.parent) for path in root.glob(f"[!.]*/{JOB}")] if root.is_dir() else []
    return sorted(found, key=lambda run: ((run.folder / JOB).stat().st_mtime, run.folder.name), reverse=True)


def targets(job: JobConfig, run: Run | None) -> dict[str, Path]:
    """{file name: where that finished file is copied to}; what the job names no folder for stays in the run's.

    Raises BadConfig if there is a file already that is not a copy `run` itself made, for a folder that cannot be
    written, and for settings that do not fit each other (`fit.refuse_misfits`).
    """
    from lib_lora.train.fit import refuse_misfits
    from lib_lora.train.methods.registry import method_of

    refuse_misfits(job)
    found: dict[str, Path] = {}
    for product in method_of(job.method.name).products(job, job.output.name):
        folder = product.target_folder(job)
        if not folder:
            continue
        target = found[product.name] = Path(os.path.expanduser(folder)) / product.name
        if not _writable(target.parent):
            raise BadConfig(f"output.{product.place}_folder = {folder!r} cannot be written; give another folder")
        if os.path.lexists(target) and not (run is not None and run.made(target)):
            raise BadConfig(
                f"{str(target)!r} exists already and is not this run's own; choose another output.name "
                f"(now {job.output.name!r}), or move that file away"
            )
    return found


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def stamp(kind: str, **facts: Any) -> Event:
    """An event: its type, the time in seconds since 1970, and facts."""
    return {"type": kind, "time": round(time.time(), 3), **facts}


def read_event(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "type" in event else None


def _ends_with_a_line(file: IO[bytes]) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or it can be made; nothing is."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path())
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def _hold(file: IO[bytes]) -> bool:
    until = time.monotonic() + HOLD_PATIENCE
    while not hold(file):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True
