"""What a run learns: one concept, or several with words, folders and class pictures of their own."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from lib_lora.train.caption_ops import fill, substitute_class, tidy
from lib_lora.train.config import JobConfig
from lib_lora.train.sections_data import Concept, Data


@dataclass(frozen=True)
class Subject:
    """One concept with everything it leaves empty filled in; `data` is the section as it holds for this concept.

    `class_folder` is "" where the job names none. `number` counts from 0.
    """

    number: int
    data: Data
    class_folder: str
    class_prompt: str
    sample_prompt: str

    def class_caption(self, found: str = "") -> str:
        """The prompt of a class picture; `found` is the caption of the picture it stands beside, for [filewords]."""
        if "[filewords]" in self.class_prompt:
            return substitute_class(fill(self.class_prompt, self.data, found), self.data)
        return fill(self.class_prompt, self.data)


def subjects_of(job: JobConfig) -> tuple[Subject, ...]:
    """The concepts of a job: its [[concept]] tables, or without any the one that data and prior describe.

    Empty fields are taken from data and prior; the repeats of both are multiplied.
    """
    subjects = [_subject(number, concept, job) for number, concept in enumerate(job.concepts or (Concept(),))]
    prompts = {tidy(subject.class_caption()) for subject in subjects}
    if len(prompts) < 2:
        return tuple(subjects)
    # One folder for pictures of different classes would mix them
    return tuple(_own_class_folder(subject, job) for subject in subjects)


def slug(text: str) -> str:
    """A prompt as part of a folder's name."""
    words = "".join(sign if sign.isalnum() else "-" for sign in text.lower())
    return "-".join(filter(None, words.split("-")))[:60].rstrip("-") or "any"


def expanded(folder: str) -> Path:
    """The folder a setting names, `~` read as home."""
    return Path(os.path.expanduser(folder))


def _subject(number: int, concept: Concept, job: JobConfig) -> Subject:
    data = replace(
        job.data,
        folder=concept.folder or job.data.folder,
        trigger=concept.trigger or job.data.trigger,
        class_word=concept.class_word or job.data.class_word,
        template=concept.template or job.data.template,
        repeats=concept.repeats * job.data.repeats,
    )
    return Subject(
        number=number,
        data=data,
        class_folder=concept.class_folder or job.prior.folder,
        class_prompt=concept.class_prompt or job.prior.prompt or data.class_word,
        sample_prompt=concept.sample_prompt,
    )


def _own_class_folder(subject: Subject, job: JobConfig) -> Subject:
    given = job.concepts[subject.number].class_folder
    if given or not job.prior.folder:
        return replace(subject, class_folder=given)
    return replace(subject, class_folder=str(expanded(job.prior.folder) / slug(subject.class_caption())))
