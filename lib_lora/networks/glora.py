"""GLoRA: `delta = s (W A + B)`, A and B of low rank: the base weight's own inputs mixed, and a LoRA beside.

https://arxiv.org/abs/2306.07967. Two layouts of the same four names exist:

- LyCORIS 3 (June 2024) and later: A = a1 @ a2, B = b1 @ b2, s = alpha / rank; a1 (in, rank), a2 (rank, in),
  b1 (out, rank), b2 (rank, in, kh, kw), and bm (rank, rank, kh, kw) where B has a Tucker core.
- LyCORIS 1 and 2: A = a2 @ a1, B = b2 @ b1 for Linear and 1x1 convolutions; a1, b1 (rank, in), a2 (in, rank),
  b2 (out, rank). Its forward multiplies by alpha / rank twice, so here s = (alpha / rank)^2, which is what such files
  were trained with. (1.8.0 to 1.8.3, July to September 2023, multiplied once; their files look the same.)

Which layout a layer has shows in its shapes and those of the base weight, whose `in` must be the longer side of a1,
unless rank = in = out. Then nothing tells, and it is read as the newer one. The LyCORIS version that metadata may name
is not asked: it is that of the machine which saved last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib_lora.networks.base import Layer, LayerSpec, uniform, wide_dtype
from lib_lora.networks.checks import alpha_of, factors_of, refuse, refuse_weight

A1, A2, B1, B2, BM = "a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"


class _Layout(NamedTuple):
    """One way to read the factors: of which weight, and how often alpha / rank counts."""

    old: bool
    rank: int
    width_out: int
    width_in: int
    numbers: int  # kh * kw

    @property
    def power(self) -> int:
        return 2 if self.old else 1

    def fits(self, weight: Tensor) -> bool:
        return (self.width_out, self.width_in, self.numbers) == (*weight.shape[:2], math.prod(weight.shape[2:]))


class GLoRA(Layer):
    """See the module's text. `alpha` None: the file has none, and s = 1."""

    kind = "glora"
    second = frozenset({"a2", "b2"})

    def __init__(self, factors: Mapping[str, Tensor], alpha: float | None = None) -> None:
        super().__init__()
        self.layouts = [layout for layout in (_new(factors), _old(factors)) if layout is not None]
        if not self.layouts:
            refuse("GLoRA", factors, "neither of the two layouts of LyCORIS")
        self.a1, self.a2 = nn.Parameter(factors[A1]), nn.Parameter(factors[A2])
        self.b1, self.b2 = nn.Parameter(factors[B1]), nn.Parameter(factors[B2])
        self.bm = nn.Parameter(factors[BM]) if BM in factors else None
        self.rank = min(layout.rank for layout in self.layouts)
        self.has_alpha = alpha is not None
        self.alpha = float(self.rank) if alpha is None else float(alpha)

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        return {A1, A2, B1, B2} <= names <= {A1, A2, B1, B2, BM, "alpha"}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> GLoRA:
        return cls(factors_of(tensors), alpha_of(tensors))

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> GLoRA:
        """A new layer in the newer layout, drawn as LyCORIS draws it."""
        width_out, width_in, *kernel = spec.shape
        ones = (1,) * len(kernel)
        factors = {
            A1: uniform((width_in, spec.rank, *ones), generator),
            A2: torch.zeros(spec.rank, width_in, *ones),
            B1: uniform((width_out, spec.rank, *ones), generator),
            B2: torch.zeros(spec.rank, width_in, *kernel),
        }
        return cls(factors, spec.alpha)

    def to_tensors(self) -> dict[str, Tensor]:
        # Without an alpha in the file none is written: which rank it would have to equal depends on the layout.
        return {**self._factors(), **({"alpha": torch.tensor(self.alpha)} if self.has_alpha else {})}

    def delta(self, weight: Tensor) -> Tensor:
        layout = next((layout for layout in self.layouts if weight.ndim > 1 and layout.fits(weight)), None)
        if layout is None:
            refuse_weight("GLoRA", self._factors(), weight)
        wide = wide_dtype(weight, self.a1)
        a1, a2, b1, b2 = (f.to(wide).flatten(1) for f in (self.a1, self.a2, self.b1, self.b2))
        if layout.old:
            a1, a2, b1, b2 = a2, a1, b2, b1
        mixed = torch.einsum("oi...,ir->or...", weight.to(wide), a1)  # (out, rank, kh, kw)
        mixed = torch.einsum("or...,rj->oj...", mixed, a2)
        if self.bm is None:
            beside = b1 @ b2
        else:
            beside = torch.einsum("mnkl,om,ni->oikl", self.bm.to(wide), b1, b2)
        scale = (self.alpha / layout.rank) ** layout.power if self.has_alpha and layout.rank else 1.0
        return (mixed + beside.reshape(weight.shape)) * scale

    def _factors(self) -> dict[str, Tensor]:
        return {f"{name}.weight": factor.detach() for name, factor in self.named_parameters()}


def _new(factors: Mapping[str, Tensor]) -> _Layout | None:
    a1, a2, b1, b2 = (factors[name] for name in (A1, A2, B1, B2))
    if min(a1.ndim, a2.ndim, b1.ndim, b2.ndim) < 2:
        return None
    width_in, rank, width_out = a1.shape[0], a1.shape[1], b1.shape[0]
    core, numbers = factors.get(BM), math.prod(b2.shape[2:])
    if core is not None:
        if core.ndim != 4 or core.shape[:2] != (rank, rank) or numbers != 1:
            return None
        numbers = math.prod(core.shape[2:])
    flat = (*_flat(a1), *_flat(a2), *_flat(b1), *b2.shape[:2])
    wanted = (width_in, rank, rank, width_in, width_out, rank, rank, width_in)
    return _Layout(False, rank, width_out, width_in, numbers) if flat == wanted else None


def _old(factors: Mapping[str, Tensor]) -> _Layout | None:
    a1, a2, b1, b2 = (factors[name] for name in (A1, A2, B1, B2))
    if min(a1.ndim, a2.ndim, b1.ndim, b2.ndim) < 2 or BM in factors:
        return None
    rank, width_in, width_out = a1.shape[0], a1.shape[1], b2.shape[0]
    flat = (*_flat(a1), *_flat(a2), *_flat(b1), *_flat(b2))
    wanted = (rank, width_in, width_in, rank, rank, width_in, width_out, rank)
    return _Layout(True, rank, width_out, width_in, 1) if flat == wanted else None


def _flat(factor: Tensor) -> tuple[int, int]:
    """The sizes of a factor as a matrix."""
    return factor.shape[0], math.prod(factor.shape[1:])
