"""OFT and BOFT as PEFT and OneTrainer write them: block rotations, on the input side but for the oldest form.

A file leaves out what its writer keeps in `adapter_config.json`. Whoever knows those figures adds them as tensors of
one number; without them the writers' defaults hold.

| tensor | figure | default |
|---|---|---|
| `neumann_terms` | terms of the series in place of Cayley's map; 0: the map itself | 5 |
| `neumann_last` | how often the series counts its last term: 1 since peft 0.18, 2 before | 1 |
| `coft_eps` | `eps` of a constrained OFT (`coft = true`) | none |

Blocks shared by the whole layer are seen by their number. Strength moves in a straight line from W to W_1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch
from lib_lora.networks.base import Layer, LayerSpec, read_alpha, wide_dtype
from lib_lora.networks.checks import refuse, refuse_weight
from lib_lora.networks.rotation import (
    butterfly,
    cayley,
    check_blocks,
    check_butterfly,
    divisor,
    neumann,
    on_columns,
    on_rows,
    skew,
    skew_of_upper,
)

VECTORS, ONETRAINER, SCALED = "oft_R", "oft_R.weight", "oft_R.scaled_oft"
TERMS, LAST, EPS = "neumann_terms", "neumann_last", "coft_eps"
BLOCKS, ROWS = "oft_r", "oft_s"
STAGES, BOFT_ROWS = "boft_R", "boft_s"
MOST_TERMS = 100


class PeftOft(Layer):
    """Upper triangles (n or 1, b * (b - 1) / 2) of skew-symmetric Q, n * b = in * kh * kw.

    `W_1 = W blockdiag(R)^T` with `R = I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4`, or with PEFT's `use_cayley_neumann = false`
    `R = (I - Q) (I + Q)^-1`. The tensor is called `oft_R` if PEFT wrote it and `oft_R.weight` if OneTrainer did:
    OneTrainer turns convolutions the other way round, `W_1 = W blockdiag(R)`, and divides Q by `2 sqrt(b - 1)` where
    there is an `oft_R.scaled_oft`.
    """

    kind = "peft_oft"

    def __init__(
        self, vectors: Tensor, figures: Mapping[str, float], *, onetrainer: bool = False, scaled: bool = False
    ) -> None:
        super().__init__()
        size = (1 + math.isqrt(1 + 8 * vectors.shape[1])) // 2 if vectors.dim() == 2 else 0
        if size == 0 or size * (size - 1) // 2 != vectors.shape[1] or vectors.shape[0] == 0:
            refuse(self.kind, {VECTORS: vectors}, "expected triangles of blocks (n, b * (b - 1) / 2)")
        self.vectors = nn.Parameter(vectors)
        self.size = size
        self.figures = dict(figures)
        if not 0 <= self.figures.get(TERMS, 5) <= MOST_TERMS:
            raise ShapeMismatch(f"{TERMS} is {figures[TERMS]:g}, not 0 to {MOST_TERMS}; mend adapter_config.json")
        self.onetrainer, self.scaled = onetrainer, scaled

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        return len(names & {VECTORS, ONETRAINER}) == 1 and names <= {VECTORS, ONETRAINER, SCALED, TERMS, LAST, EPS}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> PeftOft:
        figures = {name: read_alpha({"alpha": tensors[name]}, 0.0) for name in (TERMS, LAST, EPS) if name in tensors}
        scaled = SCALED in tensors and bool(read_alpha({"alpha": tensors[SCALED]}, 0.0))
        onetrainer = ONETRAINER in tensors
        return cls(tensors[ONETRAINER if onetrainer else VECTORS], figures, onetrainer=onetrainer, scaled=scaled)

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> PeftOft:
        """Zero triangles, of the largest blocks up to `rank` that divide the input side."""
        columns = math.prod(spec.shape[1:])
        size = divisor(columns, spec.rank)
        return cls(torch.zeros(columns // size, size * (size - 1) // 2), {})

    def to_tensors(self) -> dict[str, Tensor]:
        tensors = {ONETRAINER if self.onetrainer else VECTORS: self.vectors.detach()}
        if self.scaled:
            tensors[SCALED] = torch.tensor(True)
        return tensors | {name: torch.tensor(figure) for name, figure in self.figures.items()}

    def delta(self, weight: Tensor) -> Tensor:
        columns = weight[0].numel()
        count = columns // self.size
        if weight.dim() < 2 or count * self.size != columns or self.vectors.shape[0] not in (1, count):
            refuse_weight(self.kind, {VECTORS: self.vectors}, weight)
        wide = wide_dtype(weight, self.vectors)
        vectors = self.vectors.to(wide) / (2 * math.sqrt(self.size - 1) if self.scaled and self.size > 1 else 1)
        q = _projected(skew_of_upper(vectors, self.size), self.figures.get(EPS), 1.0)
        terms = int(self.figures.get(TERMS, 5))
        # The inverse rotation is that of -Q, in the series too.
        q = q if self.onetrainer and weight.dim() > 2 else -q
        change = neumann(q, terms, self.figures.get(LAST) != 2) if terms else cayley(-q)
        flat = weight.to(wide).flatten(1)
        return on_columns(change.expand(count, -1, -1), flat).reshape(weight.shape)


class PeftOftBlocks(Layer):
    """PEFT until 0.15: square blocks `oft_r` (n or 1, b, b), `S = (B - B^T) / 2`, `R = (I - S) (I + S)^-1`.

    Until 0.13 there is no more than that, and R turns the output side: `W_1 = blockdiag(R)^T W`; n * b may exceed
    out, then rows and columns beyond it are cut off. 0.14 and 0.15 have `oft_s` (out, 1) and turn the input side:
    `W_1 = diag(oft_s) W blockdiag(R)^T`.
    """

    kind = "peft_oft_blocks"

    def __init__(self, blocks: Tensor, rows: Tensor | None = None, eps: float | None = None) -> None:
        super().__init__()
        check_blocks(self.kind, {BLOCKS: blocks}, blocks)
        self.blocks = nn.Parameter(blocks)
        self.rows = nn.Parameter(rows) if rows is not None else None
        self.eps = eps

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        return BLOCKS in names and names <= {BLOCKS, ROWS, EPS}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> PeftOftBlocks:
        eps = read_alpha({"alpha": tensors[EPS]}, 0.0) if EPS in tensors else None
        return cls(tensors[BLOCKS], tensors.get(ROWS), eps)

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> PeftOftBlocks:
        """Zero blocks on the input side, the largest up to `rank` that divide it, and row factors of 1."""
        columns = math.prod(spec.shape[1:])
        size = divisor(columns, spec.rank)
        return cls(torch.zeros(columns // size, size, size), torch.ones(spec.shape[0], 1))

    def to_tensors(self) -> dict[str, Tensor]:
        rows = {ROWS: self.rows.detach()} if self.rows is not None else {}
        eps = {EPS: torch.tensor(self.eps)} if self.eps is not None else {}
        return {BLOCKS: self.blocks.detach(), **rows, **eps}

    def delta(self, weight: Tensor) -> Tensor:
        held, size, _ = self.blocks.shape
        out, columns = weight.shape[0], weight[0].numel()
        turned = out if self.rows is None else columns
        count = held if held > 1 else -(-turned // size)
        fits = -(-turned // count) == size if held > 1 else size <= turned
        if self.rows is not None:
            fits = fits and count * size == turned and self.rows.numel() == out
        if not fits or weight.dim() < 2:
            refuse_weight(self.kind, {BLOCKS: self.blocks}, weight)
        wide = wide_dtype(weight, self.blocks)
        # peft scales eps by what the blocks would measure on the output side.
        blocks = _projected(self.blocks.to(wide), self.eps, (size if self.rows is None else -(-out // count)) ** 2)
        change, flat = cayley(skew(blocks) / 2).expand(count, -1, -1), weight.to(wide).flatten(1)
        if self.rows is None:
            padded = torch.cat([flat, flat.new_zeros(count * size - out, columns)])
            return on_rows(change, padded)[:out].reshape(weight.shape)
        rows = self.rows.to(wide).reshape(-1, 1)
        return (rows * on_columns(change, flat) + (rows - 1) * flat).reshape(weight.shape)


class PeftBoft(Layer):
    """PEFT's BOFT: `boft_R` (stages, n, b, b), n * b = in * kh * kw, and row factors `boft_s` (out, 1) or (1, out).

    `W_1 = diag(boft_s) W (S_(m-1) ... S_1 S_0)^T`, stages of `R = (I - S) (I + S)^-1`, `S = (B - B^T) / 2`. Rows of
    half a block move together, which is not LyCORIS' order. Convolutions as peft does them since 0.14.
    """

    kind = "peft_boft"

    def __init__(self, blocks: Tensor, rows: Tensor) -> None:
        super().__init__()
        check_butterfly(self.kind, {STAGES: blocks}, blocks)
        self.blocks = nn.Parameter(blocks)
        self.rows = nn.Parameter(rows)

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        return names == {STAGES, BOFT_ROWS}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> PeftBoft:
        return cls(tensors[STAGES], tensors[BOFT_ROWS])

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> PeftBoft:
        """One stage of zero blocks, the largest up to `rank` that divide the input side, and row factors of 1."""
        columns = math.prod(spec.shape[1:])
        size = divisor(columns, spec.rank)
        rows = (1, spec.shape[0]) if len(spec.shape) > 2 else (spec.shape[0], 1)
        return cls(torch.zeros(1, columns // size, size, size), torch.ones(rows))

    def to_tensors(self) -> dict[str, Tensor]:
        return {STAGES: self.blocks.detach(), BOFT_ROWS: self.rows.detach()}

    def delta(self, weight: Tensor) -> Tensor:
        covered = self.blocks.shape[1] * self.blocks.shape[2]
        if weight.dim() < 2 or covered != weight[0].numel() or self.rows.numel() != weight.shape[0]:
            refuse_weight(self.kind, {STAGES: self.blocks}, weight)
        wide = wide_dtype(weight, self.blocks)
        flat = weight.to(wide).flatten(1)
        rotated = butterfly(cayley(-skew(self.blocks.to(wide)) / 2), flat.t(), self.blocks.shape[2] // 2).t()
        rows = self.rows.to(wide).reshape(-1, 1)
        return (rows * (rotated - flat) + (rows - 1) * flat).reshape(weight.shape)


def _projected(blocks: Tensor, eps: float | None, factor: float) -> Tensor:
    """COFT: every block's norm is at most `eps * factor / sqrt(number of blocks held)`; None is no constraint."""
    if eps is None:
        return blocks
    limit = eps * factor / math.sqrt(blocks.shape[0])
    least = max(limit, torch.finfo(blocks.dtype).tiny)  # a limit of 0 must not divide by a norm of 0
    return blocks * (limit / torch.linalg.vector_norm(blocks, dim=(1, 2), keepdim=True).clamp(min=least))
