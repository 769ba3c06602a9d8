"""A weight with networks merged in: from the pristine weight, in one rounding."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lora.errors import ShapeMismatch
from lib_lora.networks.base import Layer
from lib_lora.networks.lora import Lora


@dataclass(frozen=True)
class Share:
    """What one network gives to one weight: `strength * delta`, of a LoRA the first `ranks` ranks only (DyLoRA)."""

    layer: Layer
    strength: float
    ranks: int | None = None


def merged(pristine: Tensor, shares: Sequence[Share], out: Tensor | None = None) -> Tensor:
    """`W = W0 + sum_i m_i * delta_i(W0)` in `pristine`'s dtype, rounded once; `pristine` is not changed.

    Sums in float32 (float64 for a float64 weight). All plain low-rank shares are concatenated along the rank, so
    that one `addmm` adds them. With `out` the result is written there. Raises ShapeMismatch if a share does not fit.
    """
    wide = torch.float64 if pristine.dtype == torch.float64 else torch.float32
    active = [share for share in shares if share.strength != 0]
    pairs = [pair for pair in (_factors(share, pristine, wide) for share in active) if pair is not None]
    rest = [share for share in active if not _low_rank(share.layer)]
    weight = pristine.to(wide)
    in_place = out is not None and out.dtype == wide and out.is_contiguous() and out.device == pristine.device
    if pairs:
        up, down = torch.cat([u for u, _ in pairs], dim=1), torch.cat([d for _, d in pairs], dim=0)
        flat = weight.flatten(1)
        if out is not None and in_place and not rest:
            torch.addmm(flat, up, down, out=out.flatten(1))  # (out, in*k) + (out, ranks) @ (ranks, in*k)
            return out
        total = torch.addmm(flat, up, down).view(weight.shape)
    else:
        total = weight
    for share in rest:
        layer = _on_device(share.layer, weight.device)
        total = total + share.strength * layer.delta(weight).to(wide)
    if out is not None:
        return out.copy_(total)
    return total.to(pristine.dtype) if total is not pristine else pristine.clone()


def _low_rank(layer: Layer) -> bool:
    return isinstance(layer, Lora) and layer.mid is None


def _factors(share: Share, weight: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Up (out, r), times strength and scale, and down (r, in * kh * kw); None if the layer is not low-rank."""
    layer = share.layer
    if not isinstance(layer, Lora) or layer.mid is not None:
        return None
    up, down = layer.up.detach().flatten(1), layer.down.detach().flatten(1)
    if up.shape[0] != weight.shape[0] or down.shape[1] != weight[0].numel():
        raise ShapeMismatch(
            f"LoRA factors {tuple(layer.up.shape)} x {tuple(layer.down.shape)} do not fit a weight "
            f"{tuple(weight.shape)}; the network is for another base model"
        )
    if share.ranks is not None:
        up, down = up[:, : share.ranks], down[: share.ranks]
    up, down = up.to(weight.device, wide), down.to(weight.device, wide)
    return up * (share.strength * layer.scale), down


def _on_device(layer: Layer, device: torch.device) -> Layer:
    first = next(layer.parameters(), None)
    return layer if first is None or first.device == device else copy.deepcopy(layer).to(device)
