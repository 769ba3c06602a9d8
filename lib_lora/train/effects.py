"""Which settings would change nothing in a job as it is, and why: what the page marks, so that nobody turns dead knobs.

What a kind of training cannot honour is said in `fit`; what a network type reads is asked of the type itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from lib_lora.networks.base import LayerSpec
from lib_lora.networks.registry import by_kind
from lib_lora.train.config import CONCEPT, JobConfig, fields
from lib_lora.train.fit import REFUSED, UNUSED
from lib_lora.train.layers import RANKED
from lib_lora.train.methods.base import CHECKPOINT, EMBEDDING, HYPERNETWORK
from lib_lora.train.methods.registry import METHODS, method_of

SHAPES = ((8, 8), (8, 8, 3, 3))  # of a linear layer and a convolution, to try a type on
OPTIONS = ("tucker", "factor", "full_matrix", "decompose_both", "constraint", "rescale", "unit")
OF_LORA = {"locon": "lora", "dylora": "lora"}  # types that are LoRA under another name

# setting: (another setting, the values of it with which the first one has an effect)
NEEDS: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    **{f"data.{name}": ("data.buckets", (True,)) for name in ("bucket_step", "bucket_low", "bucket_high", "upscale")},
    "data.mask_folder": ("data.masks", ("folder",)),
    "data.mask_floor": ("data.masks", ("alpha", "folder")),
    "data.cache_folder": ("data.cache", ("disk",)),
    "optimizer.path": ("optimizer.name", ("custom",)),
    "optimizer.cycles": ("optimizer.schedule", ("cosine_restarts",)),
    "optimizer.power": ("optimizer.schedule", ("polynomial",)),
    "optimizer.end_factor": ("optimizer.schedule", ("linear", "cosine", "cosine_restarts", "polynomial", "rex")),
    "network.dora_axis": ("network.dora", (True,)),
    "training.huber_delta": ("training.loss", ("huber", "smooth_l1")),
    "training.huber_schedule": ("training.loss", ("huber", "smooth_l1")),
    "training.min_snr_gamma": ("training.weighting", ("min_snr", "soft_min_snr")),
    "output.sidecar": ("method.name", tuple(name for name in METHODS if name not in ("dreambooth",))),
}
# setting: a number of another one that switches it on when it is not 0
SWITCHED: Mapping[str, str] = {
    **{
        f"prior.{name}": "prior.weight"
        for name in ("folder", "prompt", "negative", "images", "draw_steps", "draw_cfg", "draw_batch", "draw_seed")
    },
    "training.multires_discount": "training.multires_levels",
    "optimizer.ema_warmup": "optimizer.ema",
    "output.keep_last": "output.save_every",
    **{f"output.{name}": "output.sample_every" for name in ("sample_seed", "sample_steps", "sample_cfg")},
}
# The first letters of settings that belong to some kinds of training only.
OWNED: Mapping[str, tuple[str, ...]] = {
    "method.hyper_": ("hypernetwork",),
    "method.lcm_steps": ("lcm", "slider"),  # a slider goes by the same steps
    "method.lcm_cfg_": ("lcm",),
    "method.slider_": ("slider",),
    "method.pairs_after": ("image_slider",),
    **{
        f"method.{name}": ("textual_inversion", "pivotal_tuning", "custom_diffusion")
        for name in ("tokens", "initial_word", "token_lr", "embedding_format")
    },
    "method.bundle": ("pivotal_tuning", "custom_diffusion"),
    "method.as_lora": ("dreambooth",),
    "method.save_checkpoint": ("dreambooth",),
    "training.freeze_norms": ("dreambooth",),
}


def without_effect(job: JobConfig, version: str) -> dict[str, str]:
    """{setting: why it changes nothing in this job on a base of this version}, in words for people."""
    found: dict[str, str] = {}
    for part in (_of_version(version), _of_type(job), _of_others(job), _of_method(job)):
        found |= dict(part)
    return found


def read_by_type(kind: str) -> frozenset[str]:
    """The settings `network.*` that a network type reads when its layers are made."""
    return _asked(kind)


def _of_method(job: JobConfig) -> Iterator[tuple[str, str]]:
    name = job.method.name
    for key in UNUSED.get(name, ()):
        yield key, f"no effect with method.name = {name}"
    for key, methods, why in REFUSED:
        if name in methods:
            yield key, f"not with method.name = {name}: {why}"
    for start, owners in OWNED.items():
        if name not in owners:
            yield from ((item.key, f"only with method.name = {' or '.join(owners)}") for item in _beginning(start))
    made = {product.place for product in method_of(name).products(job, job.output.name)}
    for place in (CHECKPOINT, EMBEDDING, HYPERNETWORK):
        if place not in made:
            yield f"output.{place}_folder", f"method.name = {name} makes no {place}"
    if name == "slider":
        yield CONCEPT, "a slider has no pictures"


def _of_type(job: JobConfig) -> Iterator[tuple[str, str]]:
    kind = job.network.type
    if job.method.name in ("dreambooth", "custom_diffusion"):
        kind = "full"
    known = _asked(kind)
    words = f"no effect with network.type = {kind}"
    for name in ("rank", "alpha", "conv_rank", "conv_alpha", *OPTIONS):
        if name not in known:
            yield f"network.{name}", words
    if "rank" not in known:
        yield from ((key, words) for key in ("network.ranks", "network.rank_dropout"))
    if kind not in RANKED or "alpha" not in known:
        yield from ((key, words) for key in ("network.dora", "network.dora_axis", "network.rslora"))
    if kind == "norm":
        yield "network.train_norms", "norms are all that type norm trains"


def _of_others(job: JobConfig) -> Iterator[tuple[str, str]]:
    for key, (other, values) in NEEDS.items():
        if job.get(other) not in values:
            yield key, f"only with {other} = {' or '.join(_said(value) for value in values)}"
    for key, other in SWITCHED.items():
        if not job.get(other):
            yield key, f"only with {other} above 0"
    network, method = job.network, job.method.name
    if not (job.data.shuffle or job.data.tag_dropout):
        yield "data.keep_tags", "only with data.shuffle or data.tag_dropout"
    if not (network.train_text_encoder or network.train_text_encoder_2):
        yield "optimizer.te_lr", "no text encoder is trained"
    if not network.train_text_encoder_2:
        yield "optimizer.te2_lr", "the second text encoder is not trained"
    if not (network.train_text_encoder or network.train_text_encoder_2) and method in ("network", "dreambooth"):
        yield "training.te_fraction", "no text encoder is trained"
    if job.training.epochs is not None:
        yield "training.steps", "training.epochs decides"


def _of_version(version: str) -> Iterator[tuple[str, str]]:
    if version in ("sd1", "sd2"):
        for key in ("network.train_text_encoder_2", "optimizer.te2_lr"):
            yield key, "only SDXL has a second text encoder"


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _beginning(start: str) -> Iterator[Any]:
    exact = not start.endswith("_")
    return (item for item in fields() if (item.key == start if exact else item.key.startswith(start)))


@dataclass(frozen=True)
class _Watched(LayerSpec):
    """A spec that notes what is asked of it."""

    asked: set[str] = field(default_factory=set)

    def __getattribute__(self, name: str) -> Any:
        if name in ("rank", "alpha"):
            object.__getattribute__(self, "asked").add(name)
        return object.__getattribute__(self, name)


class _Options(dict[str, object]):
    """Options that note what is asked of them."""

    def __init__(self, asked: set[str], values: Mapping[str, object]) -> None:
        super().__init__(values)
        self.asked = asked

    def __getitem__(self, name: str) -> object:
        self.asked.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: object = None) -> object:
        self.asked.add(name)
        return super().get(name, default)


@lru_cache(maxsize=64)
def _asked(kind: str) -> frozenset[str]:
    if kind == "norm":
        return frozenset()
    found: set[str] = set()
    cls = by_kind(OF_LORA.get(kind, kind))
    for shape in SHAPES:
        for split in ({}, {"decompose_both": True}, {"full_matrix": True}):
            asked: set[str] = set()
            options = _Options(asked, {"tucker": True, "factor": 2, "unit": 2, "constraint": 0.1, **split})
            cls.init(_Watched(shape, 2, 1.0, options, asked), torch.Generator())
            wide = len(shape) == 4
            found |= {f"conv_{name}" if wide and name in ("rank", "alpha") else name for name in asked}
    return frozenset(found | ({"unit"} if kind == "dylora" else set()))
