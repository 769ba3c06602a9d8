"""A run made ready: pictures, latents, text states, what is trained, objective and optimizer in one place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lib_lora.keys.layer_key import UNET
from lib_lora.ports import Conditioning, DiffusionModel, TextOptions
from lib_lora.train import keyed
from lib_lora.train.caption_ops import caption_of
from lib_lora.train.captions import Dataset
from lib_lora.train.config import JobConfig
from lib_lora.train.ema import Ema
from lib_lora.train.fit import refuse_misfits, unused
from lib_lora.train.latents import Latents
from lib_lora.train.learners import Groups, Learner
from lib_lora.train.metadata import checkpoint_hashes, prediction_of
from lib_lora.train.methods.base import Method
from lib_lora.train.methods.registry import method_of
from lib_lora.train.objective import Objective
from lib_lora.train.optim import averaged, make_optimizer
from lib_lora.train.optimizers import require_package
from lib_lora.train.plan import Plan, Team, Visit
from lib_lora.train.prior import make_class_images
from lib_lora.train.processes import Processes
from lib_lora.train.scaler import Scaler, make_scaler
from lib_lora.train.text_states import TextStates
from lib_lora.train.watch import Watch


@dataclass
class Session:
    """Everything one run works with. `device` is the UNet's; what is trained and the losses live there."""

    job: JobConfig
    model: DiffusionModel
    method: Method
    dataset: Dataset
    learners: tuple[Learner, ...]
    groups: Groups
    objective: Objective
    optimizer: torch.optim.Optimizer
    processes: Processes
    plan: Plan
    device: torch.device
    scaler: Scaler | None
    ema: Ema | None = None
    step: int = 0
    strength: float = 1.0
    started_at: float = 0.0  # seconds since 1970
    texts: TextStates = field(init=False)
    text_options: TextOptions = field(init=False)
    _latents: Latents | None = None
    _hung: ExitStack = field(default_factory=ExitStack)
    _now: float | None = None  # at which strength they hang
    _hashes: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        training = self.job.training
        options = TextOptions(training.clip_skip, training.max_tokens // 75, self.job.data.weights)
        self.text_options = options
        self.texts = TextStates(self.model, options, self.text_is_trained)

    @property
    def latents(self) -> Latents:
        """The pictures' latents; there are none for methods without pictures."""
        assert self._latents is not None
        return self._latents

    def text_is_trained(self) -> bool:
        """Whether text states depend on something that is being trained now."""
        read = [group["params"] for group in self.groups if group.get("text") or group.get("words")]
        return any(parameter.requires_grad for parameters in read for parameter in parameters)

    def text_of(self, visits: Sequence[Visit]) -> Conditioning:
        """The text states of the visits' captions, each caption as drawn for that visit."""
        data, seed = self.job.data, self.job.training.seed
        return self.texts.batch([caption_of(self.dataset.items[visit.index], visit, data, seed) for visit in visits])

    def with_sizes(self, text: Conditioning, time_ids: Tensor | None) -> Conditioning:
        """The same, told the sizes of pictures where the model wants to know them."""
        return text if text.pooled is None or time_ids is None else replace(text, time_ids=time_ids.to(self.device))

    def text_of_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """The text states of prompts as they are."""
        return self.texts.batch(list(prompts))

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Conditioning) -> Tensor:
        """The model's output, as trained so far."""
        return self.model.predict(noisy, timesteps, text)

    def losses(self, visits: Sequence[Visit]) -> Tensor:
        """(batch,) losses of one forward pass, of what is attached."""
        return self.method.losses(self, visits)

    def backward(self, step: int) -> Tensor:
        """Add up the gradients of a step's loss, pass by pass; returns that loss (of all processes) without waiting."""
        self.begin(step)
        weights = self.plan.weights(step)
        total = torch.zeros((), device=self.device)
        for number, visits in enumerate(self.plan.batches(step)):
            for strength in self.method.strengths if visits else ():
                # Dropout is the one thing that draws from torch's own generator.
                torch.manual_seed(keyed.number(self.job.training.seed, "pass", step, self.processes.rank, number))
                with self.attached(strength):
                    losses = self.losses(visits)
                    shares = losses.new_tensor([weights[visit] for visit in visits]) / len(self.method.strengths)
                    loss = (losses * shares).sum()
                    if loss.requires_grad:  # not where no caption of the batch says a new word, and nothing else learns
                        (self.scaler.scaled(loss) if self.scaler else loss).backward()
                total += loss.detach()
        return self.processes.add_up(total, self.parameters())

    def begin(self, step: int) -> None:
        """Whatever changes at the start of a step: what is drawn for it, and the end of the text encoders' training."""
        self.step = step
        for learner in self.learners:
            learner.begin_step(self.job.training.seed, step)
        if step >= self.job.training.te_fraction * self.plan.steps:
            for group in self.groups:
                for parameter in group["params"] if group.get("text") else ():
                    parameter.requires_grad_(False)

    def parameters(self) -> list[nn.Parameter]:
        """Every trained tensor that is not standing still."""
        return [p for group in self.groups for p in group["params"] if p.requires_grad]

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Every trained tensor by a name that is the same in every run of the job."""
        return {f"{lrn.kind}/{name}": p for lrn in self.learners for name, p in lrn.parameters().items()}

    @contextmanager
    def attached(self, strength: float = 1.0) -> Iterator[None]:
        """The model computes with what is trained, at a strength. Within another one it takes that one's place."""
        with self._hung_at(strength):
            yield

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Within `attached`: the model as it is without what is trained. For forward passes without gradients."""
        with self._hung_at(None):
            yield

    @contextmanager
    def _hung_at(self, strength: float | None) -> Iterator[None]:
        before = self._now
        try:
            self._hang(strength)
            yield
        finally:
            self._hang(before)

    def _hang(self, strength: float | None) -> None:
        """Hang the learners on the model at a strength, or take them off; where they hang so already, do nothing."""
        if strength == self._now:
            return
        self._now = None
        self._hung.close()
        if strength is None:
            return
        self._now = self.strength = strength
        for learner in self.learners:
            self._hung.enter_context(learner.attached(self.model, strength))

    def unscaled_norm(self) -> Tensor:
        """Gradients as they are without loss scaling, clipped; their norm before that."""
        parameters = self.parameters()
        if self.scaler is not None:
            self.scaler.unscale(parameters)
        return nn.utils.clip_grad_norm_(parameters, self.job.training.clip or math.inf)

    def update(self, finite: bool) -> bool:
        """The optimizer's step and what follows it. False, and nothing is changed, if gradients are not `finite`.

        With loss scaling such a step is left out, and counts. Raises TrainingFailed when there are too many.
        """
        taken = self.scaler.accepts(finite) if self.scaler is not None else finite
        if taken:
            self.optimizer.step()
            for learner in self.learners:
                learner.after_step()
            if self.ema is not None:
                self.ema.update(self.step + 1)
        self.optimizer.zero_grad(set_to_none=True)
        return taken or self.scaler is not None

    def base_hashes(self) -> tuple[str, str]:
        """The webui's two hashes of the base's file, "" where there is none; read once."""
        if self._hashes is None:
            source = self.model.source
            self._hashes = checkpoint_hashes(source) if source is not None and source.is_file() else ("", "")
        return self._hashes

    @contextmanager
    def best(self) -> Iterator[None]:
        """While open, parameters hold what is to be saved and shown: averages, where there are any."""
        with averaged(self.optimizer), self.ema.swapped() if self.ema else ExitStack():
            yield


def prepare(
    job: JobConfig, model: DiffusionModel, folder: Path, processes: Processes | None = None, watch: Watch | None = None
) -> Session:
    """Read, draw, encode and build what `job` needs on `model`. Raises BadConfig, BadDataset or Cancelled.

    `folder` is the run's.
    """
    method, watch = method_of(job.method.name), watch or Watch()
    require_package(job.optimizer)
    _look_at(job, model, watch)
    root = next(model.roots()[UNET].parameters())
    processes = processes or Processes.start(root.device)
    with processes.first_alone():
        job = make_class_images(job, model, watch)
    dataset, latents = method.dataset(job), None
    if method.pictures:
        with processes.first_alone():  # so that the others find what is kept on disk
            latents = Latents(model, dataset, job, folder, watch)
        dataset = latents.dataset
    learners = method.learners(job, model)
    groups = [group for learner in learners for group in learner.groups(job.optimizer)]
    session = Session(
        job=job,
        model=model,
        method=method,
        dataset=dataset,
        learners=learners,
        groups=groups,
        objective=Objective(model.alphas_cumprod(), prediction_of(job, model), job.training),
        optimizer=make_optimizer(job.optimizer, groups),
        processes=processes,
        plan=Plan.of(dataset, job.training, job.prior.weight, Team(processes.rank, processes.count)),
        device=root.device,
        scaler=make_scaler(root.dtype, job.training.loss_scaling and root.device.type != "cpu"),
    )
    session._latents = latents
    if job.optimizer.ema:
        session.ema = Ema(session.named_parameters(), job.optimizer.ema, job.optimizer.ema_warmup)
    method.check(session)
    return session


def _look_at(job: JobConfig, model: DiffusionModel, watch: Watch) -> None:
    """Refuse settings that do not fit each other or the model, and tell those without effect."""
    refuse_misfits(job)
    for note in unused(job):
        watch.tell(note)


@contextmanager
def kept_rng() -> Iterator[None]:
    """Torch's global random state is afterwards what it was before."""
    state = torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if devices:
            torch.cuda.set_rng_state_all(devices)


@contextmanager
def kept_flags(deterministic: bool = True) -> Iterator[None]:
    """Whether gradients are on, inference mode and cuDNN's choices are what training needs, and restored afterwards."""
    cudnn = torch.backends.cudnn
    kept = (cudnn.benchmark, cudnn.deterministic)
    try:
        cudnn.benchmark, cudnn.deterministic = not deterministic, deterministic
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic = kept
