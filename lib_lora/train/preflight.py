"""What to know before a job starts that would otherwise be found out after an hour: few and useful warnings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lib_lora.errors import LoraError
from lib_lora.train.concepts import expanded, subjects_of
from lib_lora.train.config import JobConfig
from lib_lora.train.estimate import visits_of
from lib_lora.train.images import list_pictures
from lib_lora.train.methods.registry import method_of

FEW, MANY = 20, 400  # visits of each picture, for a subject or style of a dozen pictures and more
FEWEST_PICTURES = 4
QUICK = 100  # steps of a trial run, about which nothing need be said
RATES = {"network": (1e-5, 2e-3), "dreambooth": (1e-7, 2e-5)}
OFTEN_RATED = ("adamw", "adamw8bit", "paged_adamw8bit", "lion", "lion8bit", "paged_lion8bit")


def pictures_of(job: JobConfig) -> int:
    """How many pictures the job's folders hold, by name alone; folders named 'N_words' in them count. 0 without."""
    total = 0
    for subject in subjects_of(job):
        if not subject.data.folder:
            continue
        root = expanded(subject.data.folder)
        total += sum(_count(folder) for folder in (_named(root) or [root]))
    return total


def warnings(job: JobConfig, pictures: int, resolution: int) -> list[str]:
    """Sentences about a job, the gravest first. `pictures`: 0 if not known; `resolution`: the base's, in pixels."""
    return [*_rates(job), *_visits(job, pictures), *_sizes(job, resolution), *_others(job, pictures)]


def _rates(job: JobConfig) -> Iterator[str]:
    low, high = RATES.get(job.method.name, (0.0, 1e9))
    rate, name = job.optimizer.lr, job.optimizer.name
    if name == "prodigy" and rate < 0.1:
        yield "Prodigy finds the learning rate itself; set optimizer.lr to 1."
    if name in OFTEN_RATED and rate > high and job.network.train_unet:
        yield "The learning rate is high; pictures may break."
    if name in OFTEN_RATED and 0 < rate < low and job.network.train_unet:
        yield "The learning rate is low; little may be learned."
    if job.network.train_text_encoder and name in OFTEN_RATED and job.optimizer.te_lr > rate > 0:
        yield "The text encoder learns faster than the UNet; usually it gets a tenth of its rate."


def _visits(job: JobConfig, pictures: int) -> Iterator[str]:
    if not method_of(job.method.name).pictures or not pictures or job.training.steps <= QUICK:
        return
    each = visits_of(job, pictures).each
    if each < FEW:
        yield "Each picture is seen seldom; more steps may be needed."
    if each > MANY and pictures >= FEWEST_PICTURES:
        yield "Each picture is seen very often; it may be learned by heart. Fewer steps, or more pictures."


def _sizes(job: JobConfig, resolution: int) -> Iterator[str]:
    if resolution and job.data.resolution > 1.5 * resolution:
        yield "The resolution is far above the base's own; it costs much time and memory."
    if resolution and job.data.resolution < resolution / 2:
        yield "The resolution is far below the base's own; pictures may come out blurred."


def _others(job: JobConfig, pictures: int) -> Iterator[str]:
    if 1 < pictures < FEWEST_PICTURES:
        yield "These are few pictures; background and pose will be learned too."
    if job.prior.weight and not any(subject.class_prompt for subject in subjects_of(job)):
        yield "Class pictures are on, but there is no class; say what the concept is one of."
    if job.training.zero_terminal_snr and job.base.prediction == "epsilon":
        yield "Zero terminal SNR needs a base that predicts v."
    if job.training.epochs is not None:
        yield "training.epochs decides how long it goes, not the steps above."
    saved = job.output.save_every
    if saved and saved > job.training.steps and job.training.epochs is None:
        yield "output.save_every is more than the steps; nothing is kept on the way."


def _named(folder: Path) -> list[Path]:
    """Sub-folders that a number and a word name."""
    try:
        return [path for path in folder.iterdir() if path.is_dir() and path.name.partition("_")[0].isdigit()]
    except OSError:
        return []


def _count(folder: Path) -> int:
    try:
        return len(list_pictures(folder))
    except (LoraError, OSError):
        return 0
