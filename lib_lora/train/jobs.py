"""Run folders: job, events, samples, checkpoints; whole after any kill, readable by any process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lib_lora.errors import BadConfig
from lib_lora.files.tensors import atomic_file
from lib_lora.train.config import JobConfig, dump_job, load_job

Event = dict[str, Any]
JOB, EVENTS, LOCK, STATE = "job.toml", "events.jsonl", "run.lock", "state.safetensors"
ENDINGS = ("finished", "failed", "cancelled")


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    `state` is "new", "running", "finished", "failed", "cancelled", or "interrupted" for a process that died.
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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the system lets go when the process dies. Raises BadConfig if it is held."""
        with (self.folder / LOCK).open("a+b") as file:
            if not _lock(file):
                raise BadConfig(f"run {str(self.folder)!r} is being trained already; wait for it or cancel it")
            try:
                self._mend_events()
                yield
            finally:
                _unlock(file)

    def is_held(self) -> bool:
        """Whether a living process is training this run."""
        path = self.folder / LOCK
        if not path.exists():
            return False
        with path.open("a+b") as file:
            free = _lock(file)
            if free:
                _unlock(file)
            return not free

    def append(self, event: Event) -> None:
        """Add one event as a line; it is on its way to the disk when this returns."""
        with (self.folder / EVENTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False) + "\n")

    def events(self) -> list[Event]:
        """All events so far, oldest first; a line cut off by a kill is left out."""
        path = self.folder / EVENTS
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is not complete yet
        return [json.loads(line) for line in lines]

    def began(self) -> float:
        """When the run first started, in seconds since 1970; now, if it has not yet."""
        return next((float(event["time"]) for event in self.events()), time.time())

    def status(self) -> Status:
        """Where the run stands, from its events."""
        known: Event = {}
        state = "new"
        for event in self.events():
            if event["type"] == "started":
                known = {}
            known |= {name: event[name] for name in Status.__dataclass_fields__ if event.get(name) is not None}
            state = event["type"] if event["type"] in ENDINGS else "running"
        if state == "running" and not self.is_held():
            state = "interrupted"
        return Status(**{**known, "state": state})

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
    found = [Run(path.parent) for path in root.glob(f"*/{JOB}")] if root.is_dir() else []
    return sorted(found, key=lambda run: ((run.folder / JOB).stat().st_mtime, run.folder.name), reverse=True)


def targets(job: JobConfig, run: Run | None) -> dict[str, Path]:
    """{file name: where that finished file is copied to}; what the job names no folder for stays in the run's.

    Raises BadConfig if there is a file already that is not the copy `run` itself made.
    """
    from lib_lora.train.methods.registry import method_of

    found: dict[str, Path] = {}
    for product in method_of(job.method.name).products(job, job.output.name):
        folder = product.target_folder(job)
        if not folder:
            continue
        target = found[product.name] = Path(os.path.expanduser(folder)) / product.name
        if os.path.lexists(target):
            mine = run.folder / target.name if run is not None else None
            if not (mine and mine.is_file() and target.is_file() and mine.read_bytes() == target.read_bytes()):
                raise BadConfig(
                    f"{str(target)!r} exists already and is not this run's own; choose another output.name "
                    f"(now {job.output.name!r}), or move that file away"
                )
    return found


def stamp(kind: str, **facts: Any) -> Event:
    """An event: its type, the time in seconds since 1970, and facts."""
    return {"type": kind, "time": round(time.time(), 3), **facts}


def _lock(file: IO[bytes]) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlock(file: IO[bytes]) -> None:
    if os.name == "nt":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_UN)
