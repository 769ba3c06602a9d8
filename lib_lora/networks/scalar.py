"""A trained scalar: `delta = scalar * core`.

LyCORIS (`use_scalar`) multiplies it into a factor when it writes a file. A `scalar` in a file comes from a trainer that
saved the parameters themselves, so it still has to be multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch
from lib_lora.networks.around import Around
from lib_lora.networks.base import Factors, Layer
from lib_lora.networks.checks import refuse

SCALAR = "scalar"


class Scalar(Around):
    """scalar: one number."""

    kind = "scalar"
    NAMES = frozenset({SCALAR})

    def __init__(self, core: Layer, scalar: Tensor) -> None:
        super().__init__(core)
        if scalar.numel() != 1:
            refuse("scalar", {SCALAR: scalar}, "expected one number")
        self.core: Layer = core
        self.scalar = nn.Parameter(scalar)

    @classmethod
    def wrap(cls, core: Layer | None, tensors: Mapping[str, Tensor]) -> Scalar | None:
        return cls(core, tensors[SCALAR]) if core is not None else None

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Scalar:
        raise ShapeMismatch(f"{SCALAR} without the factors it multiplies; the file is damaged, get it again")

    def own_tensors(self) -> dict[str, Tensor]:
        return {SCALAR: self.scalar.detach()}

    def delta(self, weight: Tensor) -> Tensor:
        change = self.core.delta(weight)
        return change * self.scalar.to(change.dtype).reshape(())

    def factors(self) -> Factors | None:
        return None

    def truncated(self, ranks: int) -> Scalar:
        return Scalar(self.core.truncated(ranks), self.scalar.detach())
