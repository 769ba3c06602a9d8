"""What is trained on: each picture with what it shows in words, its bucket and its mask; and the class pictures."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lib_lora.errors import BadDataset
from lib_lora.train.buckets import Buckets, bucket_info
from lib_lora.train.caption_files import METADATA, CaptionFiles
from lib_lora.train.caption_ops import FILEWORDS, fill, substitute
from lib_lora.train.concepts import Subject, expanded, subjects_of
from lib_lora.train.config import JobConfig
from lib_lora.train.images import Size, Skipped, list_pictures, sizes
from lib_lora.train.masks import check_folder, find_mask
from lib_lora.train.sections_data import Data

__all__ = ["Dataset", "Item", "clean_name", "fill", "read_dataset"]
_REPEATS = re.compile(r"^(\d+)_(.*)$")


@dataclass(frozen=True)
class Item:
    """A picture to train on.

    `caption` is its caption, `variants` further ones to choose from. `size` is the upright picture's, `bucket` what it
    is cut to, both (width, height). `concept` counts from 0; a `prior` item is a class picture. `mask` is the file that
    holds its mask. `trigger` is what the caption is to begin with if the job asks for it.
    """

    path: Path
    caption: str
    repeats: int = 1
    size: Size = (0, 0)
    concept: int = 0
    prior: bool = False
    mask: Path | None = None
    bucket: Size = (0, 0)
    variants: tuple[str, ...] = ()
    trigger: str = ""


@dataclass(frozen=True)
class Dataset:
    """Everything a job trains on, what had to be left out, and what the user should know about the rest."""

    items: tuple[Item, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    def visits(self) -> list[int]:
        """Indices of `items` that are learned, each as often as it is visited in one epoch."""
        return [i for i, item in enumerate(self.items) if not item.prior for _ in range(item.repeats)]

    def class_items(self) -> list[int]:
        """Indices of the class pictures."""
        return [i for i, item in enumerate(self.items) if item.prior and item.repeats]

    def without(self, broken: Mapping[int, str]) -> Dataset:
        """The dataset with some items visited no more, {index: reason}; the others keep their indices."""
        items = [replace(item, repeats=0) if i in broken else item for i, item in enumerate(self.items)]
        told = tuple(Skipped(self.items[index].path, reason) for index, reason in broken.items())
        return replace(self, items=tuple(items), skipped=self.skipped + told)

    def bucket_info(self) -> dict[str, Any]:
        """See `buckets.bucket_info`."""
        return bucket_info(self.items)


@dataclass(frozen=True)
class Source:
    """A folder of pictures that are learned alike."""

    folder: Path
    repeats: int
    phrase: str  # what to say where nothing else does
    trigger: str


def read_dataset(job: JobConfig | Data) -> Dataset:
    """The pictures and captions of every concept of a job (or of a data section alone), and its class pictures.

    Only headers are read. Raises BadDataset if a concept has no picture that can be used, or lacks class pictures.
    """
    job = JobConfig(data=job) if isinstance(job, Data) else job
    reader = _Reader(job)
    for subject in subjects_of(job):
        reader.read(subject)
    if job.prior.weight:
        for subject in subjects_of(job):
            reader.read_classes(subject)
    return reader.dataset()


def clean_name(stem: str) -> str:
    """A file name as words: separators become spaces, a leading or trailing number goes."""
    words = re.sub(r"[\s_\-.]+", " ", stem).strip()
    tidy = re.sub(r"^\d+\s+|\s*\(?\d+\)?$", "", words).strip()
    return tidy or words


class _Reader:
    """Gathers items folder by folder."""

    def __init__(self, job: JobConfig) -> None:
        check_folder(job.data)
        self._job, self._buckets = job, Buckets(job.data)
        self._items: list[Item] = []
        self._skipped: list[Skipped] = []
        self._notes: list[str] = []

    def read(self, subject: Subject) -> None:
        """Add the pictures of a concept."""
        data, before, skipped = subject.data, len(self._items), len(self._skipped)
        try:
            for source in sources(data):
                files = CaptionFiles(source.folder, data.captions in ("auto", "metadata"))
                for path, size in self._pictures(list_pictures(source.folder)).items():
                    lines = _captions(path, source, data, files)
                    self._items.append(
                        Item(
                            path, lines[0], source.repeats, size, subject.number,
                            mask=find_mask(path, data), bucket=self._buckets.of(size), variants=lines[1:],
                            trigger=source.trigger,
                        )
                    )  # fmt: skip
                self._tell_guesses(files)
        except OSError as error:
            raise BadDataset(
                f"data.folder = {data.folder!r} cannot be read ({error}); check its permissions"
            ) from error
        if len(self._items) == before:
            bad = self._skipped[skipped:]
            tail = f" ({len(bad)} unreadable, first: {bad[0].reason})" if bad else ""
            raise BadDataset(
                f"data.folder = {data.folder!r} holds no usable picture{tail}; "
                "put .png, .jpg, .webp or .bmp files there"
            )

    def read_classes(self, subject: Subject) -> None:
        """Add the class pictures of a concept. Raises BadDataset if there are none."""
        folder = expanded(subject.class_folder) if subject.class_folder else None
        found = self._pictures(list_pictures(folder)) if folder is not None and os.path.isdir(folder) else {}
        if folder is None or not found:
            raise BadDataset(
                f"there is no class picture for {subject.data.folder!r} in prior.folder = {subject.class_folder!r}; "
                "draw them first, or set prior.weight = 0"
            )
        files = CaptionFiles(folder)
        for path, size in found.items():
            lines = files.beside(path) or files.in_table(path) or (subject.class_caption(),)
            square = (self._job.data.resolution,) * 2
            self._items.append(Item(path, lines[0], 1, size, subject.number, prior=True, bucket=square))
        self._tell_guesses(files)

    def dataset(self) -> Dataset:
        """What was gathered."""
        learned = [item for item in self._items if not item.prior]
        notes = [*self._notes, *_twins(learned), *_shared_captions(learned)]
        if self._job.data.masks == "folder":
            notes += _maskless(learned, self._job.data)
        return Dataset(tuple(self._items), tuple(self._skipped), tuple(notes))

    def _pictures(self, paths: Sequence[Path]) -> dict[Path, Size]:
        good, bad = sizes(paths)
        self._skipped += bad
        return good

    def _tell_guesses(self, files: CaptionFiles) -> None:
        self._notes += [
            f"caption {str(path)!r} is not UTF-8 and was read as {guess}; save it as UTF-8 if that is wrong"
            for path, guess in files.guessed
        ]


def sources(data: Data) -> list[Source]:
    """The folder itself, or its sub-folders named 'N_words' if it has any. Raises BadDataset, and OSError."""
    if not data.folder:
        raise BadDataset("data.folder = '' names no pictures; give the folder that holds them")
    folder = expanded(data.folder)
    phrase = fill(data.template, data)
    if os.path.isdir(folder):
        named = [(path, _REPEATS.match(path.name)) for path in sorted(folder.iterdir()) if path.is_dir()]
        subs = [
            Source(path, int(m[1]), phrase or clean_name(m[2]), data.trigger or clean_name(m[2]))
            for path, m in named
            if m and int(m[1]) > 0
        ]
        if subs:
            return subs + ([Source(folder, data.repeats, phrase, data.trigger)] if list_pictures(folder) else [])
    match = _REPEATS.match(folder.name)
    words = clean_name(match[2]) if match else ""
    repeats = int(match[1]) if match and data.repeats == 1 and int(match[1]) > 0 else data.repeats
    return [Source(folder, repeats, phrase or words, data.trigger or words)]


def _captions(path: Path, source: Source, data: Data, files: CaptionFiles) -> tuple[str, ...]:
    """The captions to choose from at each visit, one at least; the lines of a caption file are such captions."""
    kinds = ("txt", "metadata", "trigger", "filename") if data.captions == "auto" else (data.captions,)
    wrap = FILEWORDS in data.template
    for kind in kinds:
        if kind == "txt":
            found = files.beside(path)
        elif kind == "metadata":
            found = files.in_table(path)
        elif kind == "trigger":
            found = () if wrap and data.captions == "auto" else (source.phrase,)
        else:
            found = (clean_name(path.stem),)
        if wrap and kind != "trigger":
            lines = [substitute(fill(data.template, data, line), data) for line in found]
        else:
            lines = [fill(line, data) for line in found]
        if any(lines):
            return tuple(filter(None, lines))
    if data.captions in ("txt", "metadata"):
        where = path.with_suffix(".txt").name if data.captions == "txt" else METADATA
        raise BadDataset(
            f"picture {str(path)!r} has no caption in {where} (data.captions = {data.captions!r}); "
            "write one, or set data.captions = 'auto'"
        )
    return ("",)


def _twins(items: Iterable[Item]) -> list[str]:
    """Notes about files of equal content. Only files of equal length are read."""
    lengths: dict[int, list[Path]] = {}
    for path in dict.fromkeys(item.path for item in items):
        lengths.setdefault(path.stat().st_size, []).append(path)
    same: dict[bytes, list[Path]] = {}
    for paths in lengths.values():
        for path in paths if len(paths) > 1 else ():
            same.setdefault(hashlib.blake2b(path.read_bytes()).digest(), []).append(path)
    return [
        f"{_names(paths)} are the same picture; keep one, or count its repeats"
        for paths in same.values()
        if len(paths) > 1
    ]


def _shared_captions(items: Iterable[Item]) -> list[str]:
    """Notes about pictures that differ in their endings only: one caption file stands beside both."""
    stems: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(item.path for item in items):
        stems.setdefault(path.with_suffix(""), []).append(path)
    return [f"{_names(paths)} share one caption file; rename one" for paths in stems.values() if len(paths) > 1]


def _maskless(items: Sequence[Item], data: Data) -> list[str]:
    """A note about pictures without a mask. Raises BadDataset if none has one."""
    bare = [item.path for item in items if item.mask is None]
    if len(bare) == len(items):
        raise BadDataset(
            f"data.masks = 'folder', but data.mask_folder = {data.mask_folder!r} holds no mask of any picture; masks "
            "have the pictures' names, or set data.masks = 'none'"
        )
    return [f"{_names(bare)} have no mask and count whole"] if bare else []


def _names(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(repr(path.name) for path in paths[:5]) + more
