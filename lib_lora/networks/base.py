"""What every network type is: a module that owns its factors and knows the delta they mean."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch


@dataclass(frozen=True)
class Op:
    """What the base layer does with its weight and bias.

    `kind` is "linear", "conv2d", "layer_norm" or "group_norm". `stride`, `padding`, `dilation` and `groups` are the
    convolution's; `groups` and `eps` the group norm's, `eps` the layer norm's.
    """

    kind: str = "linear"
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    eps: float = 1e-5

    @classmethod
    def of(cls, module: nn.Module) -> Op:
        """The operation of a Linear, Conv2d or norm module, or of anything with their attributes."""
        given: Any = module
        if getattr(module, "kernel_size", None) is not None:
            return cls("conv2d", given.stride, given.padding, given.dilation, given.groups)
        if hasattr(module, "num_groups"):
            return cls("group_norm", groups=given.num_groups, eps=given.eps)
        if hasattr(module, "normalized_shape"):
            return cls("layer_norm", eps=given.eps)
        return cls()

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The base layer's output for `x` with this weight and bias."""
        if self.kind == "conv2d":
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        if self.kind == "group_norm":
            return F.group_norm(x, self.groups, weight, bias, self.eps)
        if self.kind == "layer_norm":
            return F.layer_norm(x, tuple(weight.shape), weight, bias, self.eps)
        return F.linear(x, weight.flatten(1), bias)


class Factors(NamedTuple):
    """A delta as `scale * up @ down`: up (out, rank), down (rank, in * kh * kw), whatever the base weight is."""

    up: Tensor
    down: Tensor
    scale: float


@dataclass(frozen=True)
class LayerSpec:
    """What `init` needs: the base weight's shape, the rank and alpha, and options of the type itself."""

    shape: tuple[int, ...]
    rank: int
    alpha: float
    options: Mapping[str, object] = field(default_factory=dict)


class Layer(nn.Module, ABC):
    """A network's part for one base layer.

    For a base weight W of shape (out, in), (out, in, kh, kw) or, for a norm, (channels,), and strength m:
    `W' = W + m * delta(W)`, and likewise for the bias. That rule holds for every type, also for those whose delta
    depends on W (multiplicative, orthogonal, replaced, DoRA): strength interpolates between the base layer and the
    layer at strength 1. Several networks add their deltas, each taken of the unchanged W.
    Factors are `nn.Parameter`s; `alpha` is a plain float.
    """

    kind: ClassVar[str]  # "lora", "loha", ...
    # The parameters (up to the first dot of their names) that a new layer has at 0. In all of them together the delta
    # is linear (of rotations: for small ones). LoRA+ trains them faster, a limit on the delta's norm scales them.
    second: ClassVar[frozenset[str]] = frozenset()
    rank_dropout: float = 0.0  # the share of ranks that `branch` drops while gradients are computed
    alpha: float = 1.0
    rank: int = 0  # 0: the type has none
    changes_weight: bool = True
    changes_bias: bool = False

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

        Differentiable in the factors. Raises ShapeMismatch if the factors do not fit `weight`.
        """

    def bias_delta(self, bias: Tensor) -> Tensor:
        """The change of the bias at strength 1, of `bias`'s shape, for layers with `changes_bias`."""
        raise NotImplementedError(f"{type(self).__name__} changes no bias")

    def factors(self) -> Factors | None:
        """The delta as one matrix product, if it is one and independent of the base weight; else None."""
        return None

    def truncated(self, ranks: int) -> Layer:
        """The layer with its first `ranks` ranks only, scale kept (DyLoRA); itself for types without nested ranks."""
        return self

    def has_branch(self, op: Op) -> bool:
        """Whether `branch` is cheaper than another pass through the base layer with the delta in its weight's place."""
        return False

    def branch(self, x: Tensor, op: Op, weight: Tensor) -> Tensor:
        """What the layer adds to the base layer's output for input `x`, in `x`'s dtype; differentiable in the factors.

        `weight` is the base weight. Types that have a cheaper way than building the delta override this.
        """
        if self.changes_weight:
            out = op.apply(x, self.delta(weight).to(x.dtype))
        else:
            out = torch.zeros_like(op.apply(x, weight.to(x.dtype)))
        if not self.changes_bias:
            return out
        # The bias is that of channels: the second axis of a convolution's or group norm's output, else the last.
        channels_second = op.kind in ("conv2d", "group_norm")
        bias = self.bias_delta(torch.zeros(weight.shape[0], device=x.device, dtype=x.dtype)).to(x.dtype)
        return out + (bias.view(-1, *(1,) * (out.ndim - 2)) if channels_second else bias)

    def onto(self, output: Tensor, x: Tensor, op: Op, weight: Tensor, strength: float = 1.0) -> Tensor:
        """`output + strength * branch(x)`, in `output`'s shape and dtype; differentiable in all of them."""
        change = self.branch(x, op, weight)
        return output + (change if strength == 1 else change * strength).to(output.dtype)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank if self.rank else 1.0


class Modifier(Layer):
    """A layer round another one: it owns the tensors called `NAMES` and leaves the rest to the layer inside."""

    NAMES: ClassVar[frozenset[str]]

    @classmethod
    @abstractmethod
    def wrap(cls, core: Layer | None, tensors: Mapping[str, Tensor]) -> Layer | None:
        """The modified layer; None if it means nothing without a layer inside. Raises ShapeMismatch."""


def innermost(layer: Layer) -> Layer:
    """The layer inside all modifiers."""
    core = getattr(layer, "core", None)
    return innermost(core) if isinstance(core, Layer) else layer


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """What deltas are computed in: float64 if any of the tensors is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def read_alpha(tensors: Mapping[str, Tensor], default: float) -> float:
    """The number in `alpha`, or `default` without one. Raises ShapeMismatch if it is more than one number."""
    alpha = tensors.get("alpha")
    if alpha is None:
        return default
    if alpha.numel() != 1:
        raise ShapeMismatch(f"alpha has {alpha.numel()} numbers instead of 1; get the file again")
    return float(alpha)


def uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """kaiming_uniform(a=sqrt 5), kohya's choice: within 1 / sqrt(fan in). torch 2.1's own takes no generator."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
