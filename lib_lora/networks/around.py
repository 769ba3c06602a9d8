"""What the simple modifiers share: the layer inside does everything that the modifier itself does not change."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lib_lora.errors import BadConfig
from lib_lora.networks.base import Factors, Layer, LayerSpec, Modifier, wide_dtype


class Around(Modifier):
    """A modifier whose weight, bias, factors, rank and alpha are those of the layer inside, if there is one."""

    def __init__(self, core: Layer | None) -> None:
        super().__init__()
        self.core = core
        self.changes_weight = core is not None and core.changes_weight
        self.changes_bias = core is not None and core.changes_bias
        if core is not None:
            self.rank, self.alpha = core.rank, core.alpha

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        return bool(names & cls.NAMES)

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> Layer:
        """Not to be had without a layer inside. Raises BadConfig."""
        raise BadConfig(f"{cls.kind!r} is no network type of its own; choose the type that it goes round")

    @property
    def scale(self) -> float:
        """The inner layer's."""
        return self.core.scale if self.core is not None else 1.0

    def to_tensors(self) -> dict[str, Tensor]:
        inner = self.core.to_tensors() if self.core is not None else {}
        return {**inner, **self.own_tensors()}

    @abstractmethod
    def own_tensors(self) -> dict[str, Tensor]:
        """The tensors called `NAMES`."""

    def delta(self, weight: Tensor) -> Tensor:
        if self.core is None:
            return torch.zeros_like(weight, dtype=wide_dtype(weight))
        return self.core.delta(weight)

    def bias_delta(self, bias: Tensor) -> Tensor:
        if self.core is None or not self.core.changes_bias:
            return torch.zeros_like(bias, dtype=wide_dtype(bias))
        return self.core.bias_delta(bias)

    def factors(self) -> Factors | None:
        return self.core.factors() if self.core is not None else None
