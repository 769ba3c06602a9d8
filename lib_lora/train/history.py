"""Every run there is: its facts, read from its folder, its settings, and how to be rid of it."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lora.errors import BadConfig
from lib_lora.train.config import CONCEPT, JobConfig
from lib_lora.train.jobs import EVENTS, JOB, Run
from lib_lora.train.story import Point, Sample, Seen, Story

__all__ = ["History", "Point", "RunFacts", "Sample"]
FORGOTTEN = ".forgotten-"


@dataclass(frozen=True)
class RunFacts:
    """A run as the page lists it, read from its folder; `id` is the folder's name.

    `state`: queued, running, paused, finished, failed, cancelled, or interrupted (its process died). `files` are what
    the finished run made, `saved` what it kept on the way: {step: file}, oldest first. `can_resume`: there is a state.
    """

    id: str
    folder: Path
    name: str
    method: str
    state: str
    made: float  # seconds since 1970
    step: int = 0
    steps: int = 0
    loss: float | None = None
    message: str = ""
    files: tuple[Path, ...] = ()
    saved: Mapping[int, Path] | None = None
    samples: tuple[Sample, ...] = ()
    points: tuple[Point, ...] = ()
    can_resume: bool = False


class History:
    """The runs in one folder. For any thread; what was read once is kept, and only what is new is read again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._stories: dict[str, Story] = {}
        self._briefs: dict[str, tuple[tuple[int, int], Story]] = {}  # by size and time of the events
        self._jobs: dict[str, tuple[tuple[int, int], JobConfig | None]] = {}

    def open(self, id: str) -> Run:
        """The run of an id. Raises BadConfig if there is none: ids come from outside and are never joined as paths."""
        folder = self.folder / id if _is_name(id) else None  # os.path has no error for names that no system takes
        if folder is None or os.path.islink(folder) or not os.path.isfile(folder / JOB):
            raise BadConfig(f"there is no run {id!r}; choose one of the list")
        return Run(folder)

    def ids(self) -> list[str]:
        """The ids of all runs, newest first."""
        made: list[tuple[float, str]] = []
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    run = Run(Path(entry.path))
                    ours = entry.is_dir(follow_symlinks=False) and _is_name(entry.name)
                    if ours and _stamp(run.folder / JOB) is not None:
                        made.append((self._brief(run).made or 0.0, entry.name))
        except FileNotFoundError:
            return []
        return [id for _, id in sorted(made, reverse=True)]

    def runs(self) -> list[RunFacts]:
        """Every run, newest first, without points and samples."""
        return [self._facts(run, self._brief(run)) for run in map(self._run, self.ids())]

    def facts(self, id: str) -> RunFacts:
        """One run without points and samples: as quick on a long run as on a short one. Raises BadConfig."""
        run = self.open(id)
        return self._facts(run, self._brief(run))

    def run(self, id: str) -> RunFacts:
        """One run with everything. Raises BadConfig."""
        facts, seen = self.look(id)
        return dataclasses.replace(facts, samples=seen.samples, points=seen.points)

    def look(self, id: str) -> tuple[RunFacts, Seen]:
        """One run, without points and samples, and all that its events tell. Raises BadConfig."""
        run = self.open(id)
        with self._lock:
            story = self._stories.setdefault(id, Story(run)).read()
            return self._facts(run, story), story.seen()

    def job(self, id: str) -> JobConfig:
        """The job of a run. Raises BadConfig."""
        run = self.open(id)
        return self._job(run) or run.job()

    def settings_of(self, id: str) -> dict[str, Any]:
        """Every setting a run was made with, {"section.name": value}, and its concepts. Raises BadConfig."""
        job = self.job(id)
        found: dict[str, Any] = {
            f"{section}.{name}": list(value) if isinstance(value, tuple) else value
            for section, table in job.values().items()
            for name, value in table.items()
        }
        concepts = [dataclasses.asdict(concept) for concept in job.concepts]
        return {**found, CONCEPT: concepts} if concepts else found

    def state_of(self, id: str) -> str:
        """Where a run stands in one word. Raises BadConfig."""
        run = self.open(id)
        return _state(run, self._brief(run))

    def forget(self, id: str) -> None:
        """Delete a run's folder and what is in it. Raises BadConfig if there is none, or a process trains it."""
        run = self.open(id)
        with run.locked():
            pass
        gone = self.folder / f"{FORGOTTEN}{time.time_ns()}"
        try:
            run.folder.rename(gone)  # what is half deleted must not be listed
        except OSError as error:
            raise BadConfig(f"run {id!r} cannot be deleted ({error}); delete its folder by hand") from error
        with self._lock:
            for known in (self._stories, self._briefs, self._jobs):
                known.pop(id, None)  # type: ignore[attr-defined]
        for half in self.folder.glob(f"{FORGOTTEN}*"):  # this one, and what could not be deleted before
            shutil.rmtree(half, ignore_errors=True)

    def _run(self, id: str) -> Run:
        return Run(self.folder / id)

    def _brief(self, run: Run) -> Story:
        id, stamp = run.folder.name, _stamp(run.folder / EVENTS) or (0, 0)
        with self._lock:
            known = self._briefs.get(id)
            if known is None or known[0] != stamp:
                self._briefs[id] = known = (stamp, Story(run).brief())
            return known[1]

    def _job(self, run: Run) -> JobConfig | None:
        id, stamp = run.folder.name, _stamp(run.folder / JOB) or (0, 0)
        with self._lock:
            known = self._jobs.get(id)
        if known is None or known[0] != stamp:
            try:
                known = (stamp, run.job())
            except BadConfig:  # of another version, perhaps: listed all the same
                known = (stamp, None)
            with self._lock:
                self._jobs[id] = known
        return known[1]

    def _facts(self, run: Run, story: Story) -> RunFacts:
        job = self._job(run)
        now, made, message = story.now, story.made, story.message
        state = _state(run, story)
        if state == "interrupted":
            message = "the program ended while this was trained; resume to go on"
        if job is None:
            message = message or "its job.toml cannot be read; it may be of another version"
        main = [now["file"]] if "file" in now else []
        return RunFacts(
            id=run.folder.name,
            folder=run.folder,
            name=job.output.name if job else run.folder.name,
            method=job.method.name if job else "",
            state=state,
            made=made or (_stamp(run.folder / JOB) or (0, 0))[0] / 1e9,
            step=int(now.get("step", 0)),
            steps=int(now.get("steps", 0)) or (job.training.steps if job else 0),
            loss=now.get("loss"),
            message=message,
            files=tuple(map(Path, now.get("files", main))) if state == "finished" else (),
            saved=_saved(run, job) if job else {},
            can_resume=run.state.is_file(),
        )


def _state(run: Run, story: Story) -> str:
    if story.state in ("running", "new") and not run.is_held():
        return "interrupted"
    return "running" if story.state == "new" else story.state


def _saved(run: Run, job: JobConfig) -> dict[int, Path]:
    """What is kept in the run's checkpoints: {step: main file}, oldest first."""
    from lib_lora.train.methods.registry import method_of

    method, found = method_of(job.method.name), {}
    pattern = re.compile(re.escape(job.output.name) + r"-(\d{6,})\.")
    try:
        names = os.listdir(run.checkpoints)
    except FileNotFoundError:
        return {}
    for step in {int(match[1]) for name in names if (match := pattern.match(name))}:
        main = method.products(job, f"{job.output.name}-{step:06d}")[0].name
        if main in names:
            found[step] = run.checkpoints / main
    return dict(sorted(found.items()))


def _is_name(id: str) -> bool:
    """Whether an id is a plain name of a folder: no path, nothing hidden, nothing a system reads otherwise."""
    return bool(id) and not id.startswith(".") and not any(sign in "/\\:\0" for sign in id) and len(id) < 256


def _stamp(path: Path) -> tuple[int, int] | None:
    """Time in ns and size of a file; None if there is none."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size
