"""From "what is it?" and the machine at hand to settings: presets, a share of their steps, and savings of memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lib_lora.errors import LoraError
from lib_lora.train.config import JobConfig, find, make_job
from lib_lora.train.estimate import Estimator
from lib_lora.train.presets import PRESETS, SMALL, preset_job

SUBJECT, STYLE, SINGLE, SEVERAL = "subject", "style", "single picture", "several concepts"
KINDS = (SUBJECT, STYLE, SINGLE, SEVERAL)
# The preset a kind begins with, and another one for some versions of the base.
BEGINNINGS: Mapping[str, str] = {SUBJECT: "subject", STYLE: "style", SINGLE: "single picture", SEVERAL: "subject"}
OF_VERSION: Mapping[tuple[str, str], str] = {("subject", "sdxl"): "subject, SDXL"}
ONLY_FOR: Mapping[str, str] = {name: version for (_, version), name in OF_VERSION.items()}
QUICK, GOOD, THOROUGH = "quick look", "good", "thorough"
QUALITIES: Mapping[str, float] = {QUICK: 0.25, GOOD: 1.0, THOROUGH: 2.0}  # share of the preset's steps
NAMES = {"sd1": "SD 1", "sd2": "SD 2", "sdxl": "SDXL"}
RESERVE = 1.1e9  # bytes of a GPU that the desktop and the webui itself take
LEAST_RANK = 8


@dataclass(frozen=True)
class Machine:
    """What trains: bytes of GPU memory (None: no GPU), the base's version, whether 8-bit optimizers are there."""

    version: str
    memory: int | None = None
    eight_bit: bool = False

    @property
    def room(self) -> float | None:
        """Bytes a job may take."""
        return None if self.memory is None else self.memory - RESERVE


@dataclass(frozen=True)
class Offer:
    """A preset on a machine: it fits, or why it is not offered."""

    name: str
    refused: str = ""


def preset_for(kind: str, version: str) -> str:
    """The preset that a kind of thing begins with on a base of this version."""
    name = BEGINNINGS[kind]
    return OF_VERSION.get((name, version), name)


def with_quality(job: JobConfig, quality: str) -> dict[str, Any]:
    """The settings that a quality changes."""
    return {"training.steps": max(1, round(job.training.steps * QUALITIES[quality]))}


def savings(job: JobConfig, machine: Machine, estimator: Estimator) -> dict[str, Any]:
    """The settings to change so that the job fits the machine: the cheapest first, no more than needed.

    Empty where it fits as it is, where there is no GPU, and where nothing is known.
    """
    found: dict[str, Any] = {}
    if machine.room is None:
        return found
    for change in _ladder(job, machine):
        needs = _needs(with_changes(job, found), machine, estimator)
        if needs is None or needs <= machine.room:
            return found
        found |= change
    return found


def runnable(job: JobConfig, machine: Machine) -> dict[str, Any]:
    """The settings to change because the machine lacks what they need: an 8-bit optimizer becomes the plain one."""
    name = job.optimizer.name
    if machine.eight_bit or not name.endswith("8bit"):
        return {}
    return {"optimizer.name": "lion" if "lion" in name else "adamw"}


def low_memory(job: JobConfig, machine: Machine) -> dict[str, Any]:
    """The settings of the small presets that run on the machine, as many pictures seen as before."""
    small = {**SMALL, "training.steps": job.training.steps * job.training.batch_size}
    return {**small, **runnable(with_changes(job, small), machine)}


def offers(machine: Machine, estimator: Estimator, defaults: Mapping[str, Any]) -> list[Offer]:
    """Every built-in preset, those that do not fit the machine with the reason; `defaults` are laid over each."""
    return [_offer(name, preset_job(name, defaults), machine, estimator) for name in PRESETS]


def too_large(job: JobConfig, machine: Machine, estimator: Estimator) -> str:
    """Why a job does not fit the machine; "" if it does, or nobody knows."""
    if machine.room is None or machine.memory is None:
        return ""
    needs = _needs(job, machine, estimator)
    if needs is None or needs <= machine.room:
        return ""
    return f"needs about {needs / 1e9:.1f} GB, this GPU has {machine.memory / 1e9:.0f} GB"


def with_changes(job: JobConfig, changes: Mapping[str, Any]) -> JobConfig:
    """The job with some settings changed."""
    values = {f"{section}.{name}": value for section, table in job.values().items() for name, value in table.items()}
    made = make_job({**values, **changes})
    return made if not job.concepts else JobConfig(**{**vars(made), "concepts": job.concepts})


def _offer(name: str, job: JobConfig, machine: Machine, estimator: Estimator) -> Offer:
    wanted = ONLY_FOR.get(name)
    if wanted and wanted != machine.version:
        return Offer(name, f"for {NAMES[wanted]}, and the base is {NAMES.get(machine.version, machine.version)}")
    return Offer(name, too_large(job, machine, estimator))


def _needs(job: JobConfig, machine: Machine, estimator: Estimator) -> int | None:
    try:
        return estimator.memory(job, machine.version)
    except LoraError:  # of a pattern, say: training tells it
        return None


def _ladder(job: JobConfig, machine: Machine) -> Iterator[dict[str, Any]]:
    """Savings, the cheapest first. Steps grow as the batch shrinks: as many pictures are seen."""
    training, batch = job.training, job.training.batch_size
    while batch > 1:
        batch //= 2
        steps = training.steps * training.batch_size // batch
        yield {"training.batch_size": batch, "training.steps": min(steps, int(find("training.steps").high or steps))}
    if not training.checkpointing:
        yield {"training.checkpointing": True}
    if machine.eight_bit and job.optimizer.name == "adamw":
        yield {"optimizer.name": SMALL["optimizer.name"]}
    if job.network.train_text_encoder:
        yield {"network.train_text_encoder": False}
    if job.network.rank > LEAST_RANK:
        yield {"network.rank": LEAST_RANK, "network.alpha": job.network.alpha * LEAST_RANK / job.network.rank}
    yield {}
