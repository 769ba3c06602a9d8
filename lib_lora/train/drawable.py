"""What pictures can be drawn with of a run's files: a network by a tag, embeddings where a prompt says their words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lib_lora.errors import BadConfig, BadFile
from lib_lora.files.tensors import read_tensors
from lib_lora.keys.layer_key import TE1, TE2
from lib_lora.train.caption_ops import says
from lib_lora.train.concepts import subjects_of
from lib_lora.train.config import JobConfig
from lib_lora.train.methods.base import CHECKPOINT, EMBEDDING, HYPERNETWORK, NETWORK, Product
from lib_lora.train.methods.registry import method_of

if TYPE_CHECKING:
    from torch import Tensor

ONE_ENCODER, CLIP_L, CLIP_G = ("emb_params", "string_to_param.*"), "clip_l", "clip_g"
WHY_NOT = {
    CHECKPOINT: "A whole checkpoint is too large to be exchanged for each picture. Choose one after the other in the "
    "webui's checkpoint list and draw the same prompt and seed; or train with method.as_lora = 32, whose networks can "
    "be compared here.",
    HYPERNETWORK: "Hypernetworks are applied by the webui alone: compare them in txt2img with its X/Y/Z plot.",
}


@dataclass(frozen=True)
class Drawable:
    """A run's files of one moment: `network` is applied by a tag, `words` are {word in a prompt: its embedding}."""

    network: Path | None = None
    words: Mapping[str, Path] = field(default_factory=dict)


def prompted(job: JobConfig) -> int:
    """Which of the job's products a prompt uses: the first that has a tag, or 0 if none has."""
    return next((at for at, product in enumerate(products_of(job)) if product.tag()), 0)


def why_not_drawn(job: JobConfig) -> str:
    """Why pictures cannot be drawn here with what the job makes, and what to do instead; "" if they can."""
    found = products_of(job)
    places = [product.place for product in found]
    return "" if {NETWORK, EMBEDDING} & set(places) else WHY_NOT[places[0]]


def drawable(job: JobConfig, files: Sequence[Path]) -> Drawable | None:
    """What can be drawn with `files`, one for each product of the job; None if not all that it takes are there."""
    found = products_of(job)
    networks = [path for product, path in zip(found, files) if product.place == NETWORK]
    embeddings = [(product, path) for product, path in zip(found, files) if product.place == EMBEDDING]
    words: dict[str, Path] = {}
    for subject, (product, path) in zip(subjects_of(job), embeddings):
        for word in (subject.data.trigger.strip(), product.tag()):  # as its captions say it, and as the webui calls it
            words.setdefault(word, path)
    words.pop("", None)
    needed = [*networks[:1], *words.values()]
    whole = bool(needed) and all(path.is_file() for path in needed)
    return Drawable(networks[0] if networks else None, words) if whole else None


def require_said(prompts: Iterable[str], words: Collection[str]) -> None:
    """Raises BadConfig for a prompt that says none of the words: its pictures would all be the same."""
    for prompt in prompts:
        if not any(says(prompt, word) for word in words):
            choice = " or ".join(map(repr, words))
            raise BadConfig(f"the prompt {prompt!r} does not say {choice}: all its pictures would be the same; add it")


def read_embedding(path: Path) -> dict[str, Tensor]:
    """An embedding's vectors, {"te1" or "te2": (n, width)}. Raises BadFile if it is none that the trainer writes."""
    tensors = read_tensors(path)
    alone = next((tensors[name] for name in ONE_ENCODER if name in tensors), None)
    found = {TE1: alone if alone is not None else tensors.get(CLIP_L), TE2: tensors.get(CLIP_G)}
    vectors = {part: tensor for part, tensor in found.items() if tensor is not None}
    if TE1 not in vectors or any(tensor.ndim != 2 for tensor in vectors.values()):
        raise BadFile(f"{path.name!r} is no embedding; choose another step, or train again")
    return vectors


def products_of(job: JobConfig) -> tuple[Product, ...]:
    """The files that the job makes in the end."""
    return method_of(job.method.name).products(job, job.output.name)
