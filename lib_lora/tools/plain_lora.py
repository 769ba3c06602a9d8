"""A layer as nothing but two factors, where it is that: for dialects that know no alpha, core or scalar."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_lora.networks.base import Layer

UP, DOWN, MID, ALPHA, SCALAR = "lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "scalar"
MAGNITUDE, UP_BIAS, BIAS = "dora_scale", "lora_up.bias", "diff_b"
_OWN = {UP, DOWN, MID, ALPHA, SCALAR, MAGNITUDE, UP_BIAS, BIAS}


@dataclass(frozen=True)
class PlainLora:
    """`delta = scale * up @ down`, up (out, rank[, 1, 1]), down (rank, in[, kh, kw]).

    `magnitude` (out) are DoRA's norms of the rows, `bias` (out) what is added to the layer's bias.
    """

    up: Tensor
    down: Tensor
    scale: float = 1.0
    magnitude: Tensor | None = None
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        """The inner width."""
        return self.down.shape[0]

    def folded(self) -> PlainLora:
        """The same with scale 1: in `up`, in float32 if its own dtype would round."""
        scaled = (self.up.double() * self.scale).to(self.up.dtype)
        if not torch.equal(scaled.double(), self.up.double() * self.scale) and self.up.element_size() < 4:
            scaled = self.up.float() * self.scale
        return dataclasses.replace(self, up=scaled, scale=1.0)

    def padded(self, rank: int) -> PlainLora:
        """The same with `rank` ranks, zeros for those it does not have; `scale` is kept."""
        more = rank - self.rank
        up = F.pad(self.up, (0, 0) * (self.up.ndim - 2) + (0, more))
        down = F.pad(self.down, (0, 0) * (self.down.ndim - 1) + (0, more))
        return dataclasses.replace(self, up=up, down=down)

    def with_axes(self, axes: int | None) -> PlainLora:
        """The same with factors of that many axes, 2 or 4, where the kernel is 1x1; None: as they are."""
        if axes is None or axes == self.down.ndim or math.prod(self.down.shape[2:]) != 1:
            return self
        shape = (1,) * (axes - 2)
        up, down = self.up.reshape(*self.up.shape[:2], *shape), self.down.reshape(*self.down.shape[:2], *shape)
        return dataclasses.replace(self, up=up, down=down)


def plain_lora(layer: Layer) -> PlainLora | str:
    """The layer as factors, or the reason why it is more than that."""
    tensors = layer.to_tensors()
    if not {UP, DOWN} <= tensors.keys():
        return f"type {layer.kind!r} is not made of two factors"
    if more := tensors.keys() - _OWN:
        return f"it has {', '.join(sorted(more))} beside its factors"
    up, down = tensors[UP], tensors[DOWN]
    rank = down.shape[0]
    scale = float(tensors.get(ALPHA, rank)) / (rank or 1) * float(tensors.get(SCALAR, 1.0))
    if MID in tensors:
        core = _wide(tensors[MID])
        core = core if core.ndim == 4 else core[:, :, None, None]
        # The core belongs to either factor: (n, m, kh, kw) x (m, in) -> (n, in, kh, kw)
        down = torch.einsum("nmkl,mi->nikl", core, _wide(down).flatten(1))
        up = up.reshape(*up.shape[:2], 1, 1)
    magnitude = tensors.get(MAGNITUDE)
    if magnitude is not None and (magnitude := _rows(magnitude, up.shape[0], down.shape[1])) is None:
        return "its DoRA norms are those of columns"
    biases = [_wide(tensors[BIAS])] if BIAS in tensors else []
    biases += [_wide(tensors[UP_BIAS]) * scale] if UP_BIAS in tensors else []
    lora = PlainLora(up, down, scale, magnitude, torch.stack(biases).sum(0) if biases else None)
    return lora if rank else lora.padded(1)  # other readers know no rank 0


def _rows(magnitude: Tensor, width_out: int, width_in: int) -> Tensor | None:
    """DoRA's norms as (out) if they are of rows; `networks.dora` has the same order of questions."""
    first, second = (*magnitude.shape, 1, 1)[:2]
    if second == 1 and first == width_out:
        return magnitude.flatten()
    return magnitude.flatten() if first == 1 and second == width_out != width_in else None


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
