"""Class pictures: what the model knows of the class, drawn by itself before training (prior preservation)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora.errors import BadConfig
from lib_lora.files.tensors import atomic_file
from lib_lora.models.sample import SampleRequest, sample
from lib_lora.ports import DiffusionModel
from lib_lora.train.concepts import Subject, expanded, slug, subjects_of
from lib_lora.train.config import JobConfig
from lib_lora.train.images import list_pictures, sizes
from lib_lora.train.watch import Watch

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = "class-images"
Draw = Callable[..., "Sequence[Image]"]


@dataclass(frozen=True)
class _Lack:
    """Class pictures to be drawn into a folder: their numbers, and the prompts that picture i takes in turn."""

    folder: Path
    prompts: tuple[str, ...]
    numbers: tuple[int, ...]


def make_class_images(
    job: JobConfig, model: DiffusionModel, watch: Watch | None = None, draw: Draw = sample
) -> JobConfig:
    """Draw the class pictures that lack, and return the job with their folders filled in.

    Pictures that are there are counted and never written over; a second call goes on where a first was stopped. Number
    k of a prompt is always the same picture, but for rounding in batches of another size. Several processes: let one
    call this while the others wait, then all.
    Without prior preservation nothing happens. Raises BadConfig where the class has no name, and Cancelled.
    """
    watch = watch or Watch()
    if not job.prior.weight:
        return job
    folders = [class_folder(subject, job, model) for subject in subjects_of(job)]
    lacks = list(_lacks(job, folders))
    total, done = sum(len(lack.numbers) for lack in lacks), 0
    for lack in lacks:
        for numbers in _runs(lack.numbers, job.prior.draw_batch):
            watch.check("drawing class pictures")
            prompts = [lack.prompts[number % len(lack.prompts)] for number in numbers]
            pictures = draw(model, _request(job, lack, prompts, numbers[0]), cancelled=watch.cancelled)
            for number, prompt, picture in zip(numbers, prompts, pictures, strict=True):
                _write(lack.folder / f"class-{number:05d}.png", picture, prompt)
            done += len(numbers)
            watch.progress(done, total)
    if not job.concepts:
        return replace(job, prior=replace(job.prior, folder=str(folders[0])))
    concepts = [replace(concept, class_folder=str(folder)) for concept, folder in zip(job.concepts, folders)]
    return replace(job, concepts=tuple(concepts))


def class_folder(subject: Subject, job: JobConfig, model: DiffusionModel) -> Path:
    """The folder of a concept's class pictures: the one it names, else one for the prompt and the base model.

    Other settings that change the pictures (negative prompt, guidance, size, ...) are part of its name too.
    """
    if subject.class_folder:
        return expanded(subject.class_folder)
    prior = job.prior
    about = (model.base_identity(), subject.class_prompt, prior.negative, prior.draw_steps, prior.draw_cfg)
    digest = hashlib.blake2b(repr((*about, job.data.resolution, prior.draw_seed)).encode(), digest_size=4).hexdigest()
    return expanded(job.output.folder) / FOLDER / f"{slug(subject.class_caption())}-{digest}"


def _lacks(job: JobConfig, folders: Sequence[Path]) -> Iterator[_Lack]:
    seen: set[Path] = set()
    for subject, folder in zip(subjects_of(job), folders, strict=True):
        if folder in seen:
            continue
        seen.add(folder)
        there = list_pictures(folder) if folder.is_dir() else []
        lack = job.prior.images - len(sizes(there)[0])
        if lack > 0:
            taken = {path.stem for path in there}
            free = (number for number in range(job.prior.images + len(there)) if f"class-{number:05d}" not in taken)
            yield _Lack(folder, _prompts(subject, job), tuple(number for number, _ in zip(free, range(lack))))


def _prompts(subject: Subject, job: JobConfig) -> tuple[str, ...]:
    """What class pictures show: one prompt, or with [filewords] one for each caption of the concept."""
    prompts: tuple[str, ...] = (subject.class_caption(),)
    if "[filewords]" in subject.class_prompt:
        from lib_lora.train.captions import read_dataset

        plain = replace(subject.data, template="[filewords]", trigger="", class_word="")
        found = read_dataset(replace(job, data=plain, concepts=(), prior=replace(job.prior, weight=0.0)))
        prompts = tuple(dict.fromkeys(subject.class_caption(item.caption) for item in found.items))
    if not any(prompts):
        raise BadConfig(
            f"prior.weight = {job.prior.weight:g} needs the name of the class; set data.class_word or prior.prompt "
            f"(concept {subject.number + 1}), or prior.weight = 0"
        )
    return prompts


def _runs(numbers: Sequence[int], most: int) -> Iterator[list[int]]:
    """Consecutive numbers together, at most so many: pictures of one request have consecutive seeds."""
    run: list[int] = []
    for number in numbers:
        if run and (number != run[-1] + 1 or len(run) == most):
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def _request(job: JobConfig, lack: _Lack, prompts: Sequence[str], first: int) -> SampleRequest:
    words = repr((job.prior.draw_seed, lack.prompts))
    seed = int.from_bytes(hashlib.blake2b(words.encode(), digest_size=6).digest(), "big")
    return SampleRequest(
        prompts=list(prompts),
        negative=job.prior.negative,
        seed=seed + first,
        steps=job.prior.draw_steps,
        cfg=job.prior.draw_cfg,
        width=job.data.resolution,
        height=job.data.resolution,
        batch=len(prompts),
    )


def _write(path: Path, picture: Any, prompt: str) -> None:
    """The caption first: a picture that is there is whole."""
    with atomic_file(path.with_suffix(".txt")) as file:
        file.write(prompt.encode())
    with atomic_file(path) as file:
        picture.save(file, "png")
