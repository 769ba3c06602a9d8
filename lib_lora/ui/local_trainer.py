"""The `Trainer` of every host: a queue of jobs in this process, facts read from the folders of runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from lib_lora.errors import BadConfig, Cancelled, LoraError
from lib_lora.train.concepts import subjects_of
from lib_lora.train.config import JobConfig, make_job
from lib_lora.train.control import Control
from lib_lora.train.folder import check_folder
from lib_lora.train.history import History, RunFacts
from lib_lora.train.jobs import Run, targets
from lib_lora.train.methods.registry import method_of
from lib_lora.train.optimizers import require_package
from lib_lora.train.presets import PRESETS, preset_job
from lib_lora.train.queue import JobQueue
from lib_lora.ui.drawing import Drawing
from lib_lora.ui.standing import nothing_in_hand, standing
from lib_lora.ui.trainer import BaseFacts, Settings, TrainStatus


class Place(Protocol):
    """What `LocalTrainer` needs of the program it works in. Errors are LoraErrors with a message for the user."""

    def base(self) -> BaseFacts:
        """The base model as it is loaded now; cheap."""

    def loaded(self) -> str:
        """The name of the loaded base model; "" while none is loaded. Cheap."""

    def defaults(self) -> Mapping[str, Any]:
        """Settings of this host, laid over every preset; with output.folder, the folder of all runs."""

    def home(self) -> Path:
        """The folder for what the page itself keeps; made when asked for."""

    def check(self, job: JobConfig) -> None:
        """Raises BadConfig for a job that this host does not allow."""

    def allowed(self, path: str, what: str) -> Path:
        """See `Trainer.allowed`."""

    def train(self, job: JobConfig, run: Run, control: Control) -> None:
        """Train a run to its end on the model, alone on it. Raises as `engine.train` does."""

    def draw(self, drawing: Drawing) -> Sequence[Any]:
        """The pictures, alone on the model."""

    def changed(self) -> None:
        """See `Trainer.changed`."""

    def for_the_page(self, message: str) -> str:
        """A message as users of this host may read it."""


class LocalTrainer:
    """`Trainer` over a `Place`. Several pages may use it at once; `close` it before another takes its place."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.history = History(Path(str(place.defaults()["output.folder"])))
        self.queue = JobQueue(place.home(), self.history, self._train)
        self._submitting = threading.Lock()

    def base(self) -> BaseFacts:
        """See `Trainer.base`."""
        return self.place.base()

    def job(self, settings: Settings) -> JobConfig:
        """See `Trainer.job`."""
        values = dict(settings)
        preset = values.pop("preset", None) or next(iter(PRESETS))
        return preset_job(preset, {**self.place.defaults(), **values})

    def submit(self, settings: Settings) -> str:
        """See `Trainer.submit`."""
        with self._telling():
            self._require_base_model()
            job = self.job(settings)
            self.place.check(job)
            require_package(job.optimizer)
            if method_of(job.method.name).pictures:
                for subject in subjects_of(job):
                    check_folder(subject.data.folder)
            if Path(job.output.folder).expanduser().resolve() != self.history.folder.resolve():
                raise BadConfig(
                    f"output.folder = {job.output.folder!r} is not where this page keeps its runs; leave it out"
                )
            with self._submitting:
                self._require_own_name(job)
                return self.queue.submit(job, self.place.loaded())

    def status(self) -> TrainStatus:
        """See `Trainer.status`."""
        queue = self.queue.state()
        try:
            facts, seen = self.history.look(queue.hand)
            job = self.history.job(queue.hand)
        except BadConfig:  # nothing was trained yet, or it is deleted
            return nothing_in_hand(queue)
        return standing(
            queue, job, self._shown(facts), replace(seen, log=tuple(map(self.place.for_the_page, seen.log)))
        )

    def pause(self) -> str:
        """See `Trainer.pause`."""
        return "Pausing after this step." if self.queue.pause() else "Nothing is being trained."

    def resume(self, id: str = "", changes: Settings | None = None) -> str:
        """See `Trainer.resume`."""
        with self._telling():
            self._require_base_model()
            id = id or self.queue.state().hand
            if id:
                self._require_base(id)
            next_one = self.queue.resume(id, self._changed_job(id, changes)) if changes else self.queue.resume(id)
        waits = next_one in self.queue.state().waiting
        return f"{next_one!r} goes on when its turn comes." if waits else f"Going on with {next_one!r}."

    def cancel(self, id: str = "") -> str:
        """See `Trainer.cancel`."""
        told = {"stopping": "Stopping after this step.", "removed": "Taken out of the queue."}
        return told.get(self.queue.cancel(id), "Nothing is being trained.")

    def save_now(self) -> str:
        """See `Trainer.save_now`."""
        return "The network is kept after this step." if self.queue.save_now() else "Nothing is being trained."

    def move(self, id: str, by: int) -> str:
        """See `Trainer.move`."""
        self.queue.move(id, by)
        return "Moved."

    def runs(self) -> Sequence[RunFacts]:
        """See `Trainer.runs`."""
        return [self._shown(run) for run in self.history.runs()]

    def run(self, id: str) -> RunFacts:
        """See `Trainer.run`."""
        return self._shown(self.history.run(id))

    def settings_of(self, id: str) -> Settings:
        """See `Trainer.settings_of`."""
        return self.history.settings_of(id)

    def forget(self, id: str) -> str:
        """See `Trainer.forget`."""
        self.queue.forget(id)
        return f"Deleted the run {id!r}."

    def draw(  # noqa: PLR0913
        self,
        prompts: Sequence[str],
        seed: int,
        steps: int,
        cfg: float,
        negative: str = "",
        files: Mapping[str, Path] | None = None,
        words: Mapping[str, Path] | None = None,
    ) -> Sequence[Any]:
        """See `Trainer.draw`."""
        if self.queue.closed:  # a comparison of before, in a thread of its own
            raise BadConfig("the page was loaded anew; draw again")
        if self.queue.state().busy:
            raise BadConfig("the model is busy training; pause or cancel the training, or wait for its end")
        side = self.place.base().resolution
        with self._telling():
            beside = {"files": dict(files or {}), "words": dict(words or {})}
            return self.place.draw(Drawing(tuple(prompts), seed, steps, cfg, side, negative, **beside))

    def allowed(self, path: str, what: str) -> Path:
        """See `Trainer.allowed`."""
        return self.place.allowed(path, what)

    def home(self) -> Path:
        """See `Trainer.home`."""
        return self.place.home()

    def changed(self) -> None:
        """See `Trainer.changed`."""
        self.place.changed()

    def for_the_page(self, text: str) -> str:
        """See `Trainer.for_the_page`."""
        return self.place.for_the_page(text)

    def close(self, seconds: float = 0.0) -> None:
        """Pause what is being trained, and leave the queue to whoever comes next; waits so long for the step's end."""
        self.queue.close(seconds)

    def _train(self, run: Run, control: Control) -> None:
        self._require_base(run.folder.name)
        job = run.planned()
        try:
            self.place.train(job, run, control)
        except Cancelled:
            if run.job() == job:
                run.plan(None)
            raise
        except LoraError:
            run.plan(None)  # it may not fit the state; what does is in the folder still
            raise
        run.plan(None)
        self.place.changed()

    def _changed_job(self, id: str, changes: Settings) -> JobConfig:
        """The job of a run with other settings, but for its name and folder. Raises BadConfig."""
        job = make_job({**self.history.settings_of(id), **changes})
        for key in ("output.name", "output.folder"):
            if job.get(key) != self.history.job(id).get(key):
                raise BadConfig(f"{key} = {job.get(key)!r} cannot be changed on the way; submit a job of its own")
        self.place.check(job)
        return job

    def _require_base_model(self) -> None:
        refused = self.place.base().refused
        if refused:
            raise BadConfig(refused)

    def _require_base(self, id: str) -> None:
        """Raises BadConfig if a run was queued for another model than the loaded one: it would go on as if it were."""
        wanted, loaded = self.history.look(id)[1].base, self.place.loaded()
        if wanted and loaded and wanted != loaded:
            raise BadConfig(other_base(id, wanted, loaded))

    def _require_own_name(self, job: JobConfig) -> None:
        """Raises BadConfig if a file of the job's name is there, or will be when its turn comes."""
        wanted = set(targets(job, None).values())
        queue = self.queue.state()
        for id in (*queue.waiting, *((queue.hand,) if queue.busy else ())):
            try:
                other = self.history.job(id)
            except BadConfig:  # deleted by hand meanwhile
                continue
            if not wanted.isdisjoint(_files_of(other)):
                raise BadConfig(
                    f"output.name = {job.output.name!r} is what run {id!r} is called, which is not trained yet; choose "
                    "another name"
                )

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Errors are told as users of this host may read them."""
        try:
            yield
        except LoraError as error:
            raise type(error)(self.place.for_the_page(str(error))) from error

    def _shown(self, run: RunFacts) -> RunFacts:
        return replace(run, message=self.place.for_the_page(run.message))


def other_base(id: str, wanted: str, loaded: str) -> str:
    """What is told of a run that was queued for another base than the loaded one."""
    return f"run {id!r} is for the base {wanted!r}, {loaded!r} is loaded; load that one and resume"


def _files_of(job: JobConfig) -> list[Path]:
    products = method_of(job.method.name).products(job, job.output.name)
    return [Path(p.target_folder(job)).expanduser() / p.name for p in products if p.target_folder(job)]
