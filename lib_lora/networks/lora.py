"""LoRA and LoCon: `delta = alpha / rank * up @ down`, for Linear and convolutions, with an optional Tucker core.

LoRA: https://arxiv.org/abs/2106.09685; LoCon and the Tucker core: https://arxiv.org/abs/2108.06098 (FedPara, app. B).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch
from lib_lora.networks.base import Factors, Layer, LayerSpec, Op, read_alpha, uniform, wide_dtype

UP, DOWN, MID, ALPHA = "lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha"


def _as_conv(factor: Tensor) -> Tensor:
    """A factor as a convolution's weight: (a, b) -> (a, b, 1, 1)."""
    return factor if factor.ndim == 4 else factor[:, :, None, None]


class Lora(Layer):
    """Two factors, or three with a Tucker core.

    Linear: up (out, rank), down (rank, in). Convolution: up (out, rank, 1, 1), down (rank, in, kh, kw); with a core
    mid (rank, rank, kh, kw), down is (rank, in, 1, 1) and `delta[o, i] = sum up[o, n] mid[n, m] down[m, i]`.
    """

    kind = "lora"
    second = frozenset({"up"})

    def __init__(self, up: Tensor, down: Tensor, alpha: float | None = None, mid: Tensor | None = None) -> None:
        super().__init__()
        core = mid.shape[:2] if mid is not None else tuple(down.shape[:1]) * 2
        odd = up.ndim < 2 or down.ndim < 2 or (mid is not None and mid.ndim not in (2, 4))
        if odd or (math.prod(up.shape[1:]), down.shape[0]) != tuple(core):
            shapes = [tuple(t.shape) for t in (up, down, mid) if t is not None]
            raise ShapeMismatch(f"LoRA factors {shapes} do not share a rank; the file is damaged, get it again")
        self.up = nn.Parameter(up)
        self.down = nn.Parameter(down)
        self.mid = nn.Parameter(mid) if mid is not None else None
        self.rank = int(down.shape[0])
        # A file without alpha means scale 1.
        self.alpha = float(self.rank) if alpha is None else float(alpha)

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        # Anything more (dora_scale, biases) changes the meaning, so it must not pass for a plain LoRA.
        return {UP, DOWN} <= names <= {UP, DOWN, MID, ALPHA}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Lora:
        down = tensors[DOWN]
        alpha = read_alpha(tensors, float(down.shape[0]) if down.ndim else 0.0)
        return cls(tensors[UP], down, alpha, tensors.get(MID))

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> Lora:
        """A new layer; the option `tucker` puts a core between the factors of a convolution larger than 1x1."""
        width_out, width_in, *kernel = spec.shape
        ones = (1,) * len(kernel)
        mid = None
        if spec.options.get("tucker") and math.prod(kernel) > 1:
            down = uniform((spec.rank, width_in, *ones), generator)
            mid = uniform((spec.rank, spec.rank, *kernel), generator)
        else:
            down = uniform((spec.rank, width_in, *kernel), generator)
        return cls(torch.zeros(width_out, spec.rank, *ones), down, spec.alpha, mid)

    def to_tensors(self) -> dict[str, Tensor]:
        tensors = {UP: self.up.detach(), DOWN: self.down.detach()}
        if self.mid is not None:
            tensors[MID] = self.mid.detach()
        # In float32: an alpha such as rank * sqrt(rank) would be rounded by the file's dtype.
        return {**tensors, ALPHA: torch.tensor(self.alpha)}

    def delta(self, weight: Tensor) -> Tensor:
        wide = wide_dtype(weight, self.up)
        up, down = self.up.to(wide).flatten(1), self.down.to(wide).flatten(1)
        numbers = up.shape[0] * down.shape[1] * (math.prod(self.mid.shape[2:]) if self.mid is not None else 1)
        # A 1x1 convolution and a Linear differ in trailing axes only: either kind of factors fits either.
        if up.shape[0] != weight.shape[0] or numbers != weight.numel():
            raise ShapeMismatch(
                f"LoRA factors {tuple(self.up.shape)} x {tuple(self.down.shape)} do not fit a weight "
                f"{tuple(weight.shape)}; the network is for another base model"
            )
        if self.mid is None:
            change = up @ down  # (out, rank) @ (rank, in * kh * kw)
        else:
            change = torch.einsum("nmkl,on,mi->oikl", _as_conv(self.mid.to(wide)), up, down)
        return change.reshape(weight.shape) * self.scale

    def factors(self) -> Factors | None:
        if self.mid is not None:
            return None
        return Factors(self.up.flatten(1), self.down.flatten(1), self.scale)

    def truncated(self, ranks: int) -> Lora:
        mid = self.mid.detach()[:ranks, :ranks] if self.mid is not None else None
        up, down = self.up.detach()[:, :ranks], self.down.detach()[:ranks]
        return Lora(up, down, self.scale * down.shape[0], mid)

    def has_branch(self, op: Op) -> bool:
        return op.kind == "linear" or (op.kind == "conv2d" and op.groups == 1)

    def branch(self, x: Tensor, op: Op, weight: Tensor) -> Tensor:
        up, down = self.up.to(x.dtype), self.down.to(x.dtype)
        mid = self.mid.to(x.dtype) if self.mid is not None else None
        if op.kind == "linear":
            return F.linear(self._hidden(x) * self.scale, up.flatten(1))
        if op.groups != 1:
            return op.apply(x, self.delta(weight).to(x.dtype))  # groups mix no channels, low-rank factors do
        # DyLoRA of LyCORIS before 3.0 writes `down` flat: (rank, in * kh * kw).
        spatial = _as_conv(down) if mid is not None else down.reshape(len(down), *weight.shape[1:])
        if mid is not None:
            # Zero padding passes unchanged through the 1x1 `down`, so the core alone carries the geometry.
            x, spatial = F.conv2d(x, spatial), _as_conv(mid)
        hidden = F.conv2d(x, spatial, None, op.stride, op.padding, op.dilation)
        return F.conv2d(self._dropped(hidden * self.scale, 1), _as_conv(up))

    def onto(self, output: Tensor, x: Tensor, op: Op, weight: Tensor, strength: float = 1.0) -> Tensor:
        if op.kind != "linear" or x.dtype != output.dtype:
            return super().onto(output, x, op, weight, strength)
        # The product is summed onto the output where it is made: no pass over numbers of the output's size for the
        # sum, and in half precision one rounding in place of two.
        # The scale goes to the ranks, not into addmm: there it would meet the gradient of `up` only after the sum over
        # all rows, which overflows float16 where alpha is far below the rank.
        hidden, up = self._hidden(x) * (self.scale * strength), self.up.to(x.dtype).flatten(1)
        rows = hidden.reshape(-1, hidden.shape[-1])
        return torch.addmm(output.reshape(-1, len(up)), rows, up.t()).view(output.shape)

    def _hidden(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., rank), some ranks dropped, without the scale."""
        hidden = F.linear(x, self.down.to(x.dtype).flatten(1))
        if self.mid is not None:
            hidden = F.linear(hidden, self.mid.to(x.dtype).flatten(1))
        return self._dropped(hidden, -1)

    def _dropped(self, hidden: Tensor, axis: int) -> Tensor:
        """Rank dropout as kohya has it: ranks of each sample by themselves, and the rest scaled up."""
        if not self.rank_dropout or not torch.is_grad_enabled():
            return hidden
        shape = [1] * hidden.dim()
        shape[0], shape[axis] = hidden.shape[0], hidden.shape[axis]
        kept = torch.rand(shape, device=hidden.device) >= self.rank_dropout
        return hidden * kept.to(hidden.dtype) / (1 - self.rank_dropout)
