"""BOFT as LyCORIS writes it: a butterfly of block rotations on the output side. https://arxiv.org/abs/2311.06243

`W_1 = diag(rescale) S_(m-1) ... S_1 S_0 W`, each stage `S_i = P_i^T blockdiag(R_i) P_i` with
`R = (I + Q) (I - Q)^-1`, `Q = B - B^T`, and P_i a shuffle that brings rows of blocks 2^i apart together.
Strength moves in a straight line from W to W_1, as for every type; LyCORIS itself interpolates each stage instead,
which is the same at 0 and 1 only.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.networks.base import Layer, LayerSpec, read_alpha, wide_dtype
from lib_lora.networks.checks import refuse, refuse_weight
from lib_lora.networks.rotation import butterfly, cayley, check_butterfly, skew

BLOCKS, RESCALE, ALPHA = "oft_blocks", "rescale", "alpha"


class Boft(Layer):
    """Blocks (stages, n, b, b), n * b = out; `rescale` (out, 1, ...) multiplies rows at the end.

    `alpha` is LyCORIS' constraint: the norm of all Q together is clamped to alpha * out; 0 is no constraint.
    """

    kind = "boft"
    second = frozenset({"blocks"})

    def __init__(self, blocks: Tensor, alpha: float = 0.0, rescale: Tensor | None = None) -> None:
        super().__init__()
        check_butterfly(self.kind, {BLOCKS: blocks}, blocks)
        check_rescale(rescale, blocks, blocks.shape[1] * blocks.shape[2])
        self.blocks = nn.Parameter(blocks)
        self.rescale = nn.Parameter(rescale) if rescale is not None else None
        self.alpha = alpha

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        # Names do not tell it from OFT, whose reader passes four-dimensional blocks on to here.
        return BLOCKS in names and names <= {BLOCKS, RESCALE, ALPHA}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Boft:
        return cls(tensors[BLOCKS], read_alpha(tensors, 0.0), tensors.get(RESCALE))

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> Boft:
        """Zero blocks of the largest possible size up to `rank`; `options`: `constraint` and `rescale`."""
        out = spec.shape[0]
        powers = [2**p for p in range(out.bit_length()) if out % 2**p == 0]
        sizes = [out // blocks for blocks in powers if out // blocks % 2 == 0]
        size = max((s for s in sizes if s <= spec.rank), default=0)
        if not size:
            wanted = f"choose at least {min(sizes)}" if sizes else "leave this layer out"
            raise BadConfig(f"rank = {spec.rank} is too small for BOFT on {out} outputs; {wanted}")
        count = out // size
        blocks = torch.zeros(count.bit_length(), count, size, size)
        return cls(blocks, *wishes(spec))

    def to_tensors(self) -> dict[str, Tensor]:
        rescale = {RESCALE: self.rescale.detach()} if self.rescale is not None else {}
        return {BLOCKS: self.blocks.detach(), **rescale, ALPHA: torch.tensor(self.alpha)}

    def delta(self, weight: Tensor) -> Tensor:
        if self.blocks.shape[1] * self.blocks.shape[2] != weight.shape[0] or weight.dim() < 2:
            refuse_weight(self.kind, {BLOCKS: self.blocks}, weight)
        wide = wide_dtype(weight, self.blocks)
        q = clamped(skew(self.blocks.to(wide)), self.alpha * weight.shape[0])
        flat = weight.to(wide).flatten(1)
        return rescaled(butterfly(cayley(q), flat, 1) - flat, flat, self.rescale).reshape(weight.shape)


def clamped(q: Tensor, limit: float) -> Tensor:
    """LyCORIS' constraint: Q, or if its norm (all blocks together) is above `limit` > 0, Q scaled down to it."""
    if limit <= 0:
        return q
    return q * (limit / (q.norm() + 1e-8).clamp(min=limit))


def rescaled(change: Tensor, weight: Tensor, rescale: Tensor | None) -> Tensor:
    """The change of `weight` (out, columns) whose changed rows are multiplied by `rescale` as well."""
    if rescale is None:
        return change
    rows = rescale.to(change.dtype).reshape(-1, 1)
    return rows * change + (rows - 1) * weight


def wishes(spec: LayerSpec) -> tuple[float, Tensor | None]:
    """The constraint and the factors, all 1, that a new layer's options `constraint` and `rescale` ask for."""
    constraint = spec.options.get("constraint", 0.0)
    if not isinstance(constraint, (int, float)) or constraint < 0:
        raise BadConfig(f"constraint = {constraint!r} is no number from 0 up; 0 leaves rotations free")
    ones = torch.ones(spec.shape[0], *(1,) * (len(spec.shape) - 1))
    return float(constraint), ones if spec.options.get("rescale") else None


def check_rescale(rescale: Tensor | None, blocks: Tensor, out: int) -> None:
    """Refuse factors that are not one for each of `out` rows. Raises ShapeMismatch."""
    if rescale is not None and rescale.numel() != out:
        refuse("oft", {BLOCKS: blocks, RESCALE: rescale}, f"expected {out} numbers in {RESCALE}")
