"""What the Train page needs of whoever trains: a protocol, the status it shows, and the one implementation."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lib_lora.errors import BadConfig, Cancelled, LoraError
from lib_lora.train.captions import fill
from lib_lora.train.config import JobConfig
from lib_lora.train.folder import check_folder
from lib_lora.train.jobs import targets
from lib_lora.train.methods.registry import method_of
from lib_lora.train.presets import PRESETS, preset_job

log = logging.getLogger(__name__)
Event = Mapping[str, Any]
Runner = Callable[[JobConfig, Callable[[Event], None], Callable[[], bool]], Path]
PLOTTED = 400  # losses kept for the curve; beyond that every second one is dropped


@dataclass(frozen=True)
class TrainStatus:
    """Where the latest job stands. `state`: idle, running, finished, failed or cancelled; `eta_s` in seconds.

    `result` is the finished file, `tag` what to write in a prompt for it and `words` what calls the concept.
    """

    state: str = "idle"
    name: str = ""
    step: int = 0
    total: int = 0
    loss: float | None = None
    eta_s: float | None = None
    message: str = ""
    samples: tuple[Path, ...] = ()
    losses: tuple[float, ...] = ()
    result: Path | None = None
    tag: str = ""
    words: str = ""

    def as_json(self) -> dict[str, Any]:
        """The same for HTTP: paths as text."""
        values = dataclasses.asdict(self)
        values["samples"] = [str(path) for path in self.samples]
        values["result"] = str(self.result) if self.result else None
        return values


class TrainService(Protocol):
    """Trains one job at a time in the background."""

    def start(self, settings: Mapping[str, Any]) -> str:
        """Start a job from {"preset": name, "section.name": value, ...}; what to tell the user.

        Raises BadConfig or BadDataset for settings that cannot be trained, and BadConfig while a job runs.
        """

    def cancel(self) -> str:
        """Ask the running job to stop after its current step; what to tell the user."""

    def status(self) -> TrainStatus:
        """Where the latest job stands."""

    def presets(self) -> tuple[str, ...]:
        """Names of the presets, the usual one first."""

    def preset_values(self, name: str) -> Mapping[str, Any]:
        """Every setting a job of this preset starts from, by `section.name`."""

    def base_name(self) -> str:
        """The model that is trained against, as shown to the user."""


class BackgroundService:
    """`TrainService` over a runner that trains a job to its end in the calling thread and returns the new file.

    `defaults` are settings of this host laid over every preset (resolution, folders). `base` tells the model's name.
    """

    def __init__(self, run: Runner, base: Callable[[], str], defaults: Callable[[], Mapping[str, Any]]) -> None:
        self._run, self._base, self._defaults = run, base, defaults
        self._status = TrainStatus()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, settings: Mapping[str, Any]) -> str:
        """See `TrainService.start`."""
        values = dict(settings)
        preset = values.pop("preset", None) or self.presets()[0]
        job = preset_job(preset, {**self._defaults(), **values})
        folder = check_folder(job.data.folder)
        targets(job, None)
        with self._lock:
            if self._status.state == "running":
                raise BadConfig(f"{self._status.name!r} is being trained; wait for it or cancel it")
            self._stop.clear()
            words = fill(job.data.template, job.data)
            tag = method_of(job.method.name).products(job, job.output.name)[0].tag()
            self._status = TrainStatus("running", job.output.name, message="preparing", tag=tag, words=words)
            self._thread = threading.Thread(target=self._work, args=(job,), name="lorakit-train", daemon=True)
            self._thread.start()
        return f"Training {job.output.name} on the pictures in {folder}."

    def cancel(self) -> str:
        """See `TrainService.cancel`."""
        if self._status.state != "running":
            return "Nothing is being trained."
        self._stop.set()
        self._change(message="stopping after this step")
        return "Stopping after this step."

    def status(self) -> TrainStatus:
        """See `TrainService.status`."""
        with self._lock:
            return self._status

    def presets(self) -> tuple[str, ...]:
        """See `TrainService.presets`."""
        return tuple(PRESETS)

    def preset_values(self, name: str) -> Mapping[str, Any]:
        """See `TrainService.preset_values`."""
        sections = preset_job(name, self._defaults()).values()
        return {f"{section}.{key}": value for section, table in sections.items() for key, value in table.items()}

    def base_name(self) -> str:
        """See `TrainService.base_name`."""
        return self._base()

    def wait(self, seconds: float | None = None) -> TrainStatus:
        """The status once the job has ended or the time is over."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self.status()

    def _work(self, job: JobConfig) -> None:
        try:
            file = self._run(job, self._on_event, self._stop.is_set)
            self._change(state="finished", message="", result=file, eta_s=0.0)
        except Cancelled as error:
            self._change(state="cancelled", message=str(error))
        except LoraError as error:
            log.exception("training %s", job.output.name)
            self._change(state="failed", message=str(error))
        finally:
            if self.status().state == "running":  # an error nobody foresaw; its traceback goes to the console
                self._change(state="failed", message="training ended unexpectedly; the console shows why")

    def _on_event(self, event: Event) -> None:
        kind, status = event.get("type"), self.status()
        if kind == "started":
            self._change(total=event["steps"], step=event["step"], message="")
        elif kind == "step":
            loss = event["loss"] if event["loss"] is not None else status.loss  # None: loss scaling left the step out
            losses = status.losses if loss is None else (*status.losses, loss)
            losses = losses if len(losses) <= PLOTTED else losses[::2]
            facts = {"step": event["step"], "total": event["steps"], "loss": loss, "eta_s": event["eta_s"]}
            self._change(**facts, losses=losses)
        elif kind == "preparing" and event["total"]:
            self._change(message=f"making pictures ready: {event['done']} of {event['total']}")
        elif kind == "note":
            log.warning("%s", event["message"])
            self._change(message=event["message"])
        elif kind == "sample":
            self._change(samples=(*status.samples, Path(event["picture"])))

    def _change(self, **values: Any) -> None:
        with self._lock:
            self._status = dataclasses.replace(self._status, **values)
