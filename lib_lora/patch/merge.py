"""A weight with networks merged in: from the pristine weight, in one rounding."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lora.errors import ShapeMismatch
from lib_lora.networks.base import Layer

LATENT_CHANNELS = 4  # what the first convolution of a model that sees nothing but latents takes
EXTENDED = (5, 8, 9)  # the same of models that also see a depth map, a picture to edit, a mask and a picture
CHUNK = 1 << 18  # numbers that are summed at a time on a CPU: 1 MiB of float32 stays in a core's cache


@dataclass(frozen=True)
class Share:
    """What one network gives to one weight, or with `bias` to one bias: `strength * delta`.

    `ranks` takes only the first ranks of types that nest them (DyLoRA).
    """

    layer: Layer
    strength: float
    ranks: int | None = None
    bias: bool = False


def merged(pristine: Tensor, shares: Sequence[Share], out: Tensor | None = None) -> Tensor:
    """`W = W0 + sum_i m_i * delta_i(W0)` in `pristine`'s dtype, rounded once; `pristine` is not changed.

    Sums in float32 (float64 for a float64 weight). All plain low-rank shares are concatenated along the rank, so
    that one `addmm` adds them. With `out` the result is written there. Raises ShapeMismatch if a share does not fit.
    """
    wide = torch.float64 if pristine.dtype == torch.float64 else torch.float32
    pairs: list[tuple[Tensor, Tensor]] = []
    rest: list[Share] = []
    for share in shares:
        if share.strength != 0:
            pair = _factors(share, pristine, wide)
            rest.append(share) if pair is None else pairs.append(pair)
    out = torch.empty_like(pristine) if out is None else out
    if pairs and not rest and _add_product(out, pristine, *_joined(pairs)):
        return out
    weight = pristine.to(wide)
    total = torch.addmm(weight.flatten(1), *_joined(pairs)).view(weight.shape) if pairs else weight.clone()
    for share in rest:
        total.add_(_delta(share, weight), alpha=share.strength)
    return out.copy_(total)


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All factors as one pair: (out, ranks) and (ranks, in * kh * kw)."""
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([up for up, _ in pairs], dim=1), torch.cat([down for _, down in pairs], dim=0)


def _add_product(out: Tensor, pristine: Tensor, up: Tensor, down: Tensor) -> bool:
    """Write `pristine + up @ down` without a wide copy of the whole; False if the memory is not laid out for that."""
    if not (out.is_contiguous() and pristine.is_contiguous() and out.device == pristine.device):
        return False
    height = pristine.shape[0]
    target, source = out.view(height, -1), pristine.view(height, -1)
    width = source.shape[1]
    # (out, in*k) + (out, ranks) @ (ranks, in*k)
    if out.dtype == pristine.dtype == up.dtype:
        torch.addmm(source, up, down, out=target)
    elif out.device.type != "cpu" or height * width <= CHUNK:  # to a GPU many small steps cost more than a wide copy
        target.copy_(source.to(up.dtype, copy=True).addmm_(up, down))
    else:
        rows = max(1, CHUNK // width)
        buffer = torch.empty(rows, width, dtype=up.dtype)
        for i in range(0, height, rows):
            part = source[i : i + rows]
            target[i : i + rows].copy_(buffer[: part.shape[0]].copy_(part).addmm_(up[i : i + rows], down))
    return True


def _delta(share: Share, weight: Tensor) -> Tensor:
    layer = share.layer if share.ranks is None else share.layer.truncated(share.ranks)
    layer = _on_device(layer, weight.device)
    if share.bias:
        change = layer.bias_delta(weight)
        if change.shape != weight.shape:
            raise ShapeMismatch(
                f"a bias {tuple(change.shape)} does not fit one of {tuple(weight.shape)}; "
                "the network is for another base model"
            )
        return change.to(weight.dtype)
    try:
        return layer.delta(weight).to(weight.dtype)
    except ShapeMismatch:
        if not _extended(weight):
            raise
    # An inpainting or editing model's first convolution: the latents' channels come first, the others are its own.
    change = torch.zeros_like(weight)
    change[:, :LATENT_CHANNELS] = layer.delta(weight[:, :LATENT_CHANNELS].contiguous()).to(weight.dtype)
    return change


def _extended(weight: Tensor) -> bool:
    return weight.dim() == 4 and weight.shape[1] in EXTENDED


def _factors(share: Share, weight: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Up (out, r), times strength and scale, and down (r, in * kh * kw); None if the share is no such product."""
    if share.bias or weight.dim() < 2:
        return None
    layer = share.layer if share.ranks is None else share.layer.truncated(share.ranks)
    factors = layer.factors()
    if factors is None:
        return None
    up, down, scale = factors
    if up.shape[0] != weight.shape[0] or down.shape[1] != weight[0].numel():
        if _extended(weight) and down.shape[1] == weight[0, :LATENT_CHANNELS].numel():
            return None
        raise ShapeMismatch(
            f"factors {tuple(up.shape)} x {tuple(down.shape)} do not fit a weight "
            f"{tuple(weight.shape)}; the network is for another base model"
        )
    up, down = up.detach().to(weight.device, wide), down.detach().to(weight.device, wide)
    return up * (share.strength * scale), down


def _on_device(layer: Layer, device: torch.device) -> Layer:
    first = next(layer.parameters(), None)
    return layer if first is None or first.device == device else copy.deepcopy(layer).to(device)
