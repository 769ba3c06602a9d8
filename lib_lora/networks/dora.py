"""DoRA round any layer that changes a weight: the layer gives a direction, a vector of its own the magnitude.

`W_1 = d * V / ||V||` with `V = W + delta(W)`. https://arxiv.org/abs/2402.09353
The norms are those of V, over rows (all of an output's numbers) or columns (all of an input's). At strength m the
weight is `W + m (W_1 - W)`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch
from lib_lora.networks.around import Around
from lib_lora.networks.base import Factors, Layer, wide_dtype
from lib_lora.networks.checks import refuse, refuse_weight

MAGNITUDE, PEFT_MAGNITUDE = "dora_scale", "lora_magnitude_vector"


class Dora(Around):
    """A core layer and the magnitudes `dora_scale`.

    Their shape tells whose norms they are: rows for (out,), (out, 1) and (out, 1, 1, 1), columns for (1, in) and
    (1, in, 1, 1). PEFT's convolutions write rows as (1, out, 1, 1): under its own name `lora_magnitude_vector` these
    are rows; under `dora_scale` they are columns if they can be, for LyCORIS before 3.1 had nothing else and
    OneTrainer has it by default. Rows are written back as (out, 1, ...).
    """

    kind = "dora"
    NAMES = frozenset({MAGNITUDE, PEFT_MAGNITUDE})

    def __init__(self, core: Layer, magnitude: Tensor) -> None:
        super().__init__(core)
        self.core: Layer = core
        self.magnitude = nn.Parameter(magnitude)

    @classmethod
    def wrap(cls, core: Layer | None, tensors: Mapping[str, Tensor]) -> Dora | None:
        if core is None or not core.changes_weight:
            return None
        ((name, magnitude), *more) = tensors.items()
        if more or magnitude.numel() != max(magnitude.shape[:2], default=0):
            refuse(cls.kind, tensors, "expected one vector")
        if name == PEFT_MAGNITUDE or magnitude.dim() == 1:
            magnitude = magnitude.reshape(-1, *(1,) * max(magnitude.dim() - 1, 1))
        return cls(core, magnitude)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Dora:
        raise ShapeMismatch(f"{MAGNITUDE} without the layer it goes round; the file is damaged, get it again")

    @classmethod
    def around(cls, core: Layer, weight: Tensor, *, columns: bool = False) -> Dora:
        """Round a new layer, for the base weight it is going to change: while the layer's delta is 0, so is this."""
        return cls(core, _norm(weight.to(wide_dtype(weight)), columns))

    def own_tensors(self) -> dict[str, Tensor]:
        return {MAGNITUDE: self.magnitude.detach()}

    def delta(self, weight: Tensor) -> Tensor:
        change = self.core.delta(weight)
        wide = wide_dtype(change, self.magnitude)
        change = change.to(wide)
        direction = weight.to(wide) + change
        columns = self._of_columns(weight)
        shape = (1, -1) if columns else (-1, 1)
        magnitude = self.magnitude.to(wide).reshape(*shape, *(1,) * (weight.dim() - 2))
        # d V / ||V|| - W, written such that a magnitude equal to the norm changes nothing, to the last bit.
        return change + (magnitude / _norm(direction, columns) - 1) * direction

    def factors(self) -> Factors | None:
        return None

    def truncated(self, ranks: int) -> Dora:
        return Dora(self.core.truncated(ranks), self.magnitude.detach())

    def _of_columns(self, weight: Tensor) -> bool:
        out, width_in = weight.shape[:2] if weight.dim() > 1 else (0, 0)
        first, second = self.magnitude.shape[:2]
        if (first, second) == (out, 1):
            return False
        if (first, second) == (1, width_in):
            return True
        if (first, second) != (1, out):
            refuse_weight(self.kind, self.own_tensors(), weight)
        return False


def _norm(weight: Tensor, columns: bool) -> Tensor:
    """Norms of rows (out, 1, ...) or columns (1, in, ...), a smallest step above 0, as LyCORIS has it."""
    dims = [dim for dim in range(weight.dim()) if dim != (1 if columns else 0)]
    return torch.linalg.vector_norm(weight, dim=dims, keepdim=True) + torch.finfo(weight.dtype).eps
