"""The one training loop: a job and a model in, events and a network file out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from lib_lora.errors import Cancelled, LoraError, Paused, TrainingFailed
from lib_lora.keys.layer_key import UNET
from lib_lora.ports import DiffusionModel
from lib_lora.train.checkpoint import load_state
from lib_lora.train.config import JobConfig
from lib_lora.train.control import Control
from lib_lora.train.frozen import frozen
from lib_lora.train.jobs import Event, Run, stamp, targets
from lib_lora.train.optim import rate_factor, set_rates
from lib_lora.train.outputs import Outputs
from lib_lora.train.processes import Processes
from lib_lora.train.session import Session, kept_flags, kept_rng, prepare
from lib_lora.train.watch import Watch

UNSAVED = (LoraError, OSError, RuntimeError, ValueError, MemoryError)  # a GPU that failed cannot be read either
PATIENCE = 0.5  # seconds between two signs of life while pictures are made ready
ETA_MEMORY = 0.9  # how much of the step time's running mean stays at each step


@dataclass(frozen=True)
class Result:
    """A finished run: its folder, its main file, its steps, and the last step's loss (None if none was left)."""

    folder: Path
    file: Path
    steps: int
    loss: float | None


def train(
    job: JobConfig,
    model: DiffusionModel,
    *,
    on_event: Callable[[Event], object] = lambda event: None,
    cancel: Callable[[], bool] | Control = lambda: False,
    resume: Path | str | None = None,
) -> Result:
    """Train what a job describes on `model`, whose weights, flags and hooks are afterwards as before.

    `on_event` gets every event as it is written: "started", "step", "sample", "saved", then "finished", "failed",
    "cancelled" or "paused". `cancel` is asked before every step, and while pictures are made ready; a `Control` may
    want other things too. `resume` is a run's folder, to go on from its state. Of several processes (accelerate launch)
    only the first writes and tells, and what one is asked for all do. Raises BadConfig or BadDataset before the first
    step, Cancelled, Paused, and TrainingFailed naming step and cause.
    """
    earlier = Run.open(resume) if resume is not None else None
    targets(job, earlier)
    processes = Processes.start(next(model.roots()[UNET].parameters()).device)
    run = earlier or Run(Path(processes.share(str(Run.create(job).folder) if processes.first else None)))
    with ExitStack() as stack:
        stack.callback(processes.close)
        if processes.first:
            stack.enter_context(run.locked())
        stack.enter_context(kept_rng())
        record = stack.enter_context(_Record(run, on_event if processes.first else _tell_nobody))
        record.first_process, record.control = processes.first, Control.of(cancel)
        stack.enter_context(kept_flags(job.training.deterministic))
        stack.enter_context(frozen(model, checkpointing=job.training.checkpointing, attention=job.base.attention))
        watch = Watch(record.control, record.preparing, record.note)
        record.session = session = prepare(job, model, run.folder, processes, watch)
        session.started_at = run.began()
        if processes.first:
            record.outputs = Outputs(session, run, record.send)
        if run.state.exists():
            record.step = load_state(run.state, session)
        if processes.first:
            run.write_job(job)  # only now: a job that does not fit the state must not hide the one that does
        record.started()
        return _loop(session, record)


def _loop(session: Session, record: _Record) -> Result:
    always = session.method.strengths == (1.0,)  # hung on the model once for all steps; hundreds of hooks cost time
    with session.attached() if always else nullcontext():
        return _steps(session, record)


def _steps(session: Session, record: _Record) -> Result:
    outputs, plan, loss = record.outputs, session.plan, None
    while record.step < plan.steps:
        _heed(session, record)
        loss = _step(session, record)
        record.stepped(loss)
        if outputs is not None:
            outputs.after(record.step)
    if outputs is None:
        session.processes.wait()
        return Result(record.run.folder, record.run.folder, record.step, loss)
    files = outputs.finish(record.step)
    session.processes.wait()
    facts = {"file": str(files[0]), "files": [str(file) for file in files]}
    record.send(stamp("finished", step=record.step, steps=plan.steps, **facts))
    return Result(record.run.folder, files[0], record.step, loss)


def _heed(session: Session, record: _Record) -> None:
    """Do what any process was asked for since the last step. Raises Cancelled or Paused."""
    control, asked = record.control, session.processes.any
    if not asked(control() or control.saving()):
        return
    if asked(control.saving()) and record.step:
        control.saved()
        if record.outputs is not None:
            record.outputs.keep_asked(record.step)
    where = f"at step {record.step} of {session.plan.steps}"
    if asked(control.cancelled()):
        raise Cancelled(f"stopped {where}")
    if asked(control.paused()):
        raise Paused(f"paused {where}")


def _step(session: Session, record: _Record) -> float:
    """One optimizer step; returns its loss."""
    step = record.step
    record.rate = set_rates(session.optimizer, rate_factor(session.job.optimizer, step, session.plan.steps))
    total = session.backward(step)
    norm = session.unscaled_norm()
    value, size = torch.stack([total, norm.to(total)]).tolist()  # the step's one wait for the device
    finite = math.isfinite(value) and math.isfinite(size)
    record.whole = not finite
    if session.update(finite):
        return float(value)
    raise TrainingFailed(
        f"step {step + 1}: loss = {value}, gradient norm = {size}; lower optimizer.lr "
        f"(now {session.job.optimizer.lr:g}) or use the base model in float32 or bfloat16"
    )


class _Record:
    """The run's progress and its end: writes events, and on any error saves the state before telling it."""

    def __init__(self, run: Run, on_event: Callable[[Event], object]) -> None:
        self.run, self.on_event = run, on_event
        self.session: Session | None = None
        self.outputs: Outputs | None = None
        self.step = self.first = 0
        self.rate = 0.0
        self.first_process = True
        self.control = Control()
        self.whole = True  # False from the optimizer's step until that step is counted
        self._clock = time.monotonic()
        self._pace: float | None = None

    def send(self, event: Event) -> None:
        """Write an event to the run's folder, then hand it on. Only the first of several processes does."""
        if not self.first_process:
            return
        self.run.append(event)
        tell, self.on_event = self.on_event, _tell_nobody  # one that fails is not asked again
        tell(event)
        self.on_event = tell

    def preparing(self, done: int, total: int) -> None:
        """Tell how far the pictures are made ready, but not more often than can be seen."""
        now = time.monotonic()
        if done == total or now - self._clock >= PATIENCE:
            self._clock = now
            self.send(stamp("preparing", folder=str(self.run.folder), done=done, total=total))

    def note(self, message: str) -> None:
        """Tell something that the user should know and that stops nothing."""
        self.send(stamp("note", folder=str(self.run.folder), message=message))

    def started(self) -> None:
        """Tell what is about to be trained."""
        assert self.session is not None
        self.first = self.step
        data, parameters = self.session.dataset, self.session.named_parameters()
        facts = {
            "pictures": sum(not item.prior for item in data.items),
            "class_pictures": sum(item.prior for item in data.items),
            "skipped": [item.reason for item in data.skipped],
            "notes": list(data.notes),
            "processes": self.session.processes.count,
            "parameters": sum(p.numel() for p in parameters.values()),
        }
        steps = self.session.plan.steps
        self.send(stamp("started", folder=str(self.run.folder), step=self.step, steps=steps, **facts))
        self._clock = time.monotonic()

    def stepped(self, loss: float) -> None:
        """Count a step and tell its loss and the time left."""
        assert self.session is not None
        now, plan = time.monotonic(), self.session.plan
        took, self._clock = now - self._clock, now
        self._pace = took if self._pace is None else ETA_MEMORY * self._pace + (1 - ETA_MEMORY) * took
        self.step += 1
        self.whole = True
        eta = round(self._pace * (plan.steps - self.step), 1)
        facts = {"step": self.step, "steps": plan.steps, "epoch": plan.epoch(self.step)}
        told = loss if math.isfinite(loss) else None  # of a step that loss scaling left out; JSON has no word for it
        self.send(stamp("step", **facts, loss=told, lr=self.rate, eta_s=eta, step_s=round(took, 4)))

    def __enter__(self) -> _Record:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        steps = self.session.plan.steps if self.session else 0
        saved = self._save(error)
        if isinstance(error, Cancelled):
            paused = isinstance(error, Paused) or (self.session is None and self.control.paused())
            message = self._ended("paused" if paused else "cancelled", steps, f"{error}; resume to go on{saved}")
            raise (Paused if paused else Cancelled)(message) from None
        message = (str(error) if isinstance(error, LoraError) else _explain(error, self.step + 1)) + saved
        message = self._ended("failed", steps, message)
        if isinstance(error, TrainingFailed) or (isinstance(error, Exception) and not isinstance(error, LoraError)):
            raise TrainingFailed(message) from error

    def _ended(self, kind: str, steps: int, message: str) -> str:
        try:
            self.send(stamp(kind, step=self.step, steps=steps, message=message))
        except OSError as trouble:  # e.g. the full disk that ended the run
            return f"{message} (this could not be noted in {self.run.folder}: {trouble})"
        return message

    def _save(self, error: BaseException) -> str:
        """Keep what was reached; says where, or why not."""
        if self.outputs is None or not self.whole or (self.step == self.first and not isinstance(error, Cancelled)):
            return ""
        what = "state"
        try:
            told = f" (the state after step {self.step} is saved in {self.outputs.keep_state(self.step)})"
            what = "network"
            if isinstance(error, Cancelled) and not isinstance(error, Paused):
                self.outputs.keep_products(self.step)
            return told
        except UNSAVED as trouble:
            return f" (the {what} after step {self.step} could not be saved: {trouble})"


def _tell_nobody(event: Event) -> None:
    pass


def _explain(error: BaseException, step: int) -> str:
    cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "out of memory" in str(error).lower():
        advice = "lower training.batch_size or data.resolution, or set training.checkpointing = true, and resume"
        return f"out of memory at step {step} ({cause}); {advice}"
    return f"step {step} ended with {type(error).__name__}: {cause}; see the log for where, then resume the run"
