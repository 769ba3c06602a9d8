"""What every network type is: a module that owns its factors and knows the delta they mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Op:
    """How the base layer uses its weight. `stride`, `padding`, `dilation` and `groups` matter for `conv2d` only."""

    kind: str = "linear"  # "linear" or "conv2d"
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @classmethod
    def of(cls, module: nn.Module) -> Op:
        """The operation of a Linear or Conv2d module (or of anything with their attributes)."""
        if getattr(module, "kernel_size", None) is None:
            return cls()
        return cls("conv2d", module.stride, module.padding, module.dilation, module.groups)  # type: ignore[arg-type]


@dataclass(frozen=True)
class LayerSpec:
    """What `init` needs: the base weight's shape, the rank and alpha, and options of the type itself."""

    shape: tuple[int, ...]
    rank: int
    alpha: float
    options: Mapping[str, object] = field(default_factory=dict)


class Layer(nn.Module, ABC):
    """A network's part for one base layer.

    Equation, for a base weight W of shape (out, in) or (out, in, kh, kw) and strength m:
    `W' = W + m * delta(W)`. Factors are `nn.Parameter`s; `alpha` is a plain float.
    """

    kind: ClassVar[str]  # "lora", "loha", ...
    alpha: float
    rank: int

    @classmethod
    @abstractmethod
    def matches(cls, names: frozenset[str]) -> bool:
        """Whether these tensor names (after the layer prefix, e.g. `lora_up.weight`) are of this type."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Layer:
        """The layer these tensors describe, dtypes kept. Raises ShapeMismatch if they contradict each other."""

    @classmethod
    @abstractmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> Layer:
        """A new float32 layer whose delta is exactly 0."""

    @abstractmethod
    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors of a file, names without the layer prefix, `alpha` included; inverse of `from_tensors`."""

    @abstractmethod
    def delta(self, weight: Tensor) -> Tensor:
        """The change at strength 1, of `weight`'s shape and in float32 or wider. Never mutates its inputs.

        Raises ShapeMismatch if the factors do not fit `weight`.
        """

    @abstractmethod
    def branch(self, x: Tensor, op: Op) -> Tensor:
        """What the delta adds to the base layer's output for input `x`; differentiable, bias not included."""

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank if self.rank else 1.0
