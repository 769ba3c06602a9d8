"""The layers of a base model as shapes alone: what a job would train there is known before the model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey
from lib_lora.keys.text_encoder import LAYERS, PROJECTION, text_encoder_paths
from lib_lora.keys.unet import unet_paths
from lib_lora.ports import Slot

Shape = tuple[int, ...]
WORDS, PLACES = 49408, 77  # of CLIP's vocabulary and of its longest text
UNBIASED = (".to_q", ".to_k", ".to_v", PROJECTION)


@dataclass(frozen=True)
class Widths:
    """The sizes that tell one base from another: channels of the UNet's levels, width of the text states it reads, of
    the text encoders, of the pooled text and sizes it is told (0: none); `vae` in numbers."""

    version: str
    channels: tuple[int, ...]
    cross: int
    text: tuple[int, ...]
    linear: bool  # whether transformers begin and end with a linear layer, not a 1x1 convolution
    told: int = 0
    vae: int = 83_653_863
    mlp: int = 4  # times the text encoders' width


BASES: Mapping[str, Widths] = {
    "sd1": Widths("sd1", (320, 640, 1280, 1280), 768, (768,), linear=False),
    "sd2": Widths("sd2", (320, 640, 1280, 1280), 1024, (1024,), linear=True),
    "sdxl": Widths("sdxl", (320, 640, 1280), 2048, (768, 1280), linear=True, told=2816),
}


class BaseShapes:
    """`ports.Patchable` without a model: every layer with a weight of the right shape on the meta device.

    `only` limits it to these layers.
    """

    def __init__(self, widths: Widths, only: frozenset[LayerKey] | None = None) -> None:
        self.widths, self.version, self.name = widths, widths.version, widths.version
        self._only = only

    def slots(self) -> Mapping[LayerKey, Slot]:
        """Where each layer's weight is."""
        return self._slots

    def base_identity(self) -> str:
        """No file's."""
        return ""

    def numbers(self, part: str) -> int:
        """How many numbers the weights and biases of a part are."""
        return self._numbers.get(part, 0)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for key, slot in self._slots.items():
            found[key.part] = found.get(key.part, 0) + sum(held.numel() for held in slot.module.parameters())
        return found

    @cached_property
    def _slots(self) -> dict[LayerKey, Slot]:
        found = {}
        for key, shape in self._shapes():
            if self._only is None or key in self._only:
                biased = not (key.path.endswith(UNBIASED) or key.path.endswith("_embedding")) or ".linear_" in key.path
                found[key] = Slot(_Held(shape, biased), "weight", "bias" if biased else None)
        return found

    def _shapes(self) -> Iterator[tuple[LayerKey, Shape]]:
        widths = self.widths
        for path in unet_paths(self.version):
            yield LayerKey(UNET, path), unet_shape(path, widths)
        parts = (TE1, TE2)[: len(widths.text)]
        for part, hidden in zip(parts, widths.text):
            for path in text_encoder_paths(LAYERS[self.version][part], projection=part == TE2):
                yield LayerKey(part, path), text_shape(path, hidden, widths.mlp)


class _Held(nn.Module):
    """A module of a weight and perhaps a bias, without memory."""

    def __init__(self, shape: Shape, biased: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(shape[:1], device="meta"), requires_grad=False) if biased else None


def text_shape(path: str, hidden: int, mlp: int = 4) -> Shape:
    """The shape of a text encoder's weight."""
    if path.endswith("token_embedding"):
        return (WORDS, hidden)
    if path.endswith("position_embedding"):
        return (PLACES, hidden)
    if "norm" in path:
        return (hidden,)
    return {"fc1": (mlp * hidden, hidden), "fc2": (hidden, mlp * hidden)}.get(path.rpartition(".")[2], (hidden, hidden))


def unet_shape(path: str, widths: Widths) -> Shape:
    """The shape of a UNet's weight, in diffusers' form (Rombach et al. 2022, https://arxiv.org/abs/2112.10752)."""
    first, time = widths.channels[0], 4 * widths.channels[0]
    ends = {
        "conv_in": (first, 4, 3, 3),
        "conv_out": (4, first, 3, 3),
        "conv_norm_out": (first,),
        "time_embedding.linear_1": (time, first),
        "time_embedding.linear_2": (time, time),
        "add_embedding.linear_1": (time, widths.told),
        "add_embedding.linear_2": (time, time),
    }
    if path in ends:
        return ends[path]
    room, *rest = path.split(".")
    level = int(rest[0]) if room != "mid_block" else len(widths.channels) - 1
    kind, number = (rest[1], int(rest[2])) if room != "mid_block" else (rest[0], int(rest[1]))
    into, out = _channels(room, level, number, widths.channels)
    if kind == "attentions":
        return _transformer_shape(path, out, widths)
    if kind in ("downsamplers", "upsamplers"):
        return (out, out, 3, 3)
    return {
        "norm1": (into,),
        "conv1": (out, into, 3, 3),
        "time_emb_proj": (out, time),
        "norm2": (out,),
        "conv2": (out, out, 3, 3),
        "conv_shortcut": (out, into, 1, 1),
    }[rest[-1]]


def _channels(room: str, level: int, number: int, channels: tuple[int, ...]) -> tuple[int, int]:
    """What a block's residual layer reads and writes."""
    if room == "mid_block":
        return channels[-1], channels[-1]
    if room == "down_blocks":
        return (channels[level] if number else channels[max(level - 1, 0)]), channels[level]
    upwards = channels[::-1]
    out, before = upwards[level], upwards[max(level - 1, 0)]
    skipped = upwards[min(level + 1, len(upwards) - 1)] if number == 2 else out
    return (out if number else before) + skipped, out


def _transformer_shape(path: str, width: int, widths: Widths) -> Shape:
    name = path.partition(".attentions.")[2].split(".", 1)[1]
    if name in ("proj_in", "proj_out"):
        return (width, width) if widths.linear else (width, width, 1, 1)
    last = name.split(".", 2)[-1] if name.startswith("transformer_blocks.") else name
    if last.startswith("norm"):
        return (width,)
    known = {"ff.net.0.proj": (8 * width, width), "ff.net.2": (width, 4 * width)}
    known |= {"attn2.to_k": (width, widths.cross), "attn2.to_v": (width, widths.cross)}
    return known.get(last, (width, width))
