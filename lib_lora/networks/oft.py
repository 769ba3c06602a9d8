"""OFT as LyCORIS (diag-oft) and kohya write it: block rotations on the output side. https://arxiv.org/abs/2306.07280

`W_1 = diag(rescale) blockdiag(R)^T W`, `R = (I + Q) (I - Q)^-1`, `Q = B - B^T`; convolutions rotate whole filters.
Strength moves in a straight line from W to W_1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib_lora.networks.base import Layer, LayerSpec, read_alpha, wide_dtype
from lib_lora.networks.boft import ALPHA, BLOCKS, RESCALE, Boft, check_rescale, clamped, rescaled, wishes
from lib_lora.networks.checks import refuse_weight
from lib_lora.networks.lokr import factorized
from lib_lora.networks.rotation import cayley, check_blocks, divisor, on_rows, skew

# kohya calls it alpha too, but means another thing by 0: keys/ renames it where the prefix is `oft_unet_`.
CONSTRAINT = "constraint"
DIAGONAL = "oft_diag"
TINY = 1e-8  # kohya's and LyCORIS' guard against a norm of 0


class Oft(Layer):
    """Blocks (n, b, b), n * b = out; `rescale` (out, 1, ...) multiplies rows at the end (LyCORIS only).

    The norm of all Q together is clamped to alpha * out. LyCORIS: tensor `alpha`, 0 or none is no constraint. kohya:
    tensor `constraint`, which clamps at 0 too, to next to nothing.
    """

    kind = "oft"
    second = frozenset({"blocks"})

    def __init__(
        self, blocks: Tensor, alpha: float = 0.0, rescale: Tensor | None = None, *, clamps_at_zero: bool = False
    ) -> None:
        super().__init__()
        check_blocks(self.kind, {BLOCKS: blocks}, blocks)
        check_rescale(rescale, blocks, blocks.shape[0] * blocks.shape[1])
        self.blocks = nn.Parameter(blocks)
        self.rescale = nn.Parameter(rescale) if rescale is not None else None
        self.alpha = alpha
        self.clamps_at_zero = clamps_at_zero

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        return names == {BLOCKS, CONSTRAINT} or Boft.matches(names)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Layer:
        """OFT, or BOFT if the blocks have four dimensions."""
        if CONSTRAINT in tensors:
            constraint = read_alpha({ALPHA: tensors[CONSTRAINT]}, 0.0)
            return cls(tensors[BLOCKS], constraint, clamps_at_zero=True)
        if tensors[BLOCKS].dim() == 4:
            return Boft.from_tensors(tensors)
        return cls(tensors[BLOCKS], read_alpha(tensors, 0.0), tensors.get(RESCALE))

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> Oft:
        """Zero blocks, split as LyCORIS does it: `rank` is the size of a block or the number of blocks, whichever makes
        the blocks smaller; one that does not divide out is lowered. `options`: `constraint` and `rescale`."""
        size, count = factorized(spec.shape[0], spec.rank)
        return cls(torch.zeros(count, size, size), *wishes(spec))

    def to_tensors(self) -> dict[str, Tensor]:
        rescale = {RESCALE: self.rescale.detach()} if self.rescale is not None else {}
        name = CONSTRAINT if self.clamps_at_zero else ALPHA
        return {BLOCKS: self.blocks.detach(), **rescale, name: torch.tensor(self.alpha)}

    def delta(self, weight: Tensor) -> Tensor:
        if self.blocks.shape[0] * self.blocks.shape[1] != weight.shape[0] or weight.dim() < 2:
            refuse_weight(self.kind, {BLOCKS: self.blocks}, weight)
        wide = wide_dtype(weight, self.blocks)
        q, limit = skew(self.blocks.to(wide)), self.alpha * weight.shape[0]
        if self.clamps_at_zero:
            q = q * ((q.norm().clamp(max=limit) + TINY) / (q.norm() + TINY))
        else:
            q = clamped(q, limit)
        flat = weight.to(wide).flatten(1)
        return rescaled(on_rows(cayley(-q), flat), flat, self.rescale).reshape(weight.shape)


class OftDiag(Layer):
    """LyCORIS 2.0's files: `oft_diag` (n, b, b) is R itself, with constraint and rescale worked in; `W_1 = R^T W`."""

    kind = "oft_diag"

    def __init__(self, blocks: Tensor) -> None:
        super().__init__()
        check_blocks(self.kind, {DIAGONAL: blocks}, blocks)
        self.blocks = nn.Parameter(blocks)

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        return DIAGONAL in names and names <= {DIAGONAL, ALPHA}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> OftDiag:
        return cls(tensors[DIAGONAL])

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> OftDiag:
        """Unit matrices; without Q nothing keeps them rotations, so train `oft` instead."""
        size = divisor(spec.shape[0], spec.rank)
        return cls(torch.eye(size).repeat(spec.shape[0] // size, 1, 1))

    def to_tensors(self) -> dict[str, Tensor]:
        return {DIAGONAL: self.blocks.detach()}

    def delta(self, weight: Tensor) -> Tensor:
        if self.blocks.shape[0] * self.blocks.shape[1] != weight.shape[0] or weight.dim() < 2:
            refuse_weight(self.kind, {DIAGONAL: self.blocks}, weight)
        wide = wide_dtype(weight, self.blocks)
        unit = torch.eye(self.blocks.shape[1], dtype=wide, device=self.blocks.device)
        change = self.blocks.to(wide).transpose(-1, -2) - unit
        return on_rows(change, weight.to(wide).flatten(1)).reshape(weight.shape)
