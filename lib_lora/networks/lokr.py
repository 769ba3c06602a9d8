"""LoKr: `delta = alpha / rank * kron(w1, w2)`, either factor whole or itself of low rank.

https://arxiv.org/abs/2212.10650; as in LyCORIS, peft and OneTrainer. Two whole factors have no rank: their scale is 1,
whatever alpha the file holds (often the endless rank that a trainer was told, infinite in float16); 1 is written back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.networks.base import Layer, LayerSpec, Op, uniform, wide_dtype
from lib_lora.networks.checks import alpha_of, factors_of, refuse, refuse_weight

W1, W1_A, W1_B = "lokr_w1", "lokr_w1_a", "lokr_w1_b"
W2, W2_A, W2_B, T2 = "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"
_LEFT = (frozenset({W1}), frozenset({W1_A, W1_B}))
_RIGHT = (frozenset({W2}), frozenset({W2_A, W2_B}), frozenset({W2_A, W2_B, T2}))


class LoKr(Layer):
    """The Kronecker product of a small w1 (p, q) and a larger w2 (r, s), out = p r and in = q s.

    w1 is whole or `w1_a (p, rank) @ w1_b (rank, q)`. w2 is whole, (r, s) or (r, s, kh, kw), or
    `w2_a (r, rank) @ w2_b (rank, s * kh * kw)`, or with a Tucker core t2 (rank, rank, kh, kw) of w2_a (rank, r) and
    w2_b (rank, s).
    """

    kind = "lokr"
    second = frozenset({W2, W2_B})

    def __init__(self, factors: Mapping[str, Tensor], alpha: float | None = None) -> None:
        super().__init__()
        left = _size(factors.get(W1), factors.get(W1_A), factors.get(W1_B), None)
        right = _size(factors.get(W2), factors.get(W2_A), factors.get(W2_B), factors.get(T2))
        if left is None or right is None:
            refuse("LoKr", factors, "w1 or w2 cannot be built")
        self.left, self.right = left, right  # (p, q) and (r, s * kh * kw)
        for name, factor in factors.items():
            self.register_parameter(name, nn.Parameter(factor))
        inner = factors.get(W2_B, factors.get(W1_B))
        self.rank = int(inner.shape[0]) if inner is not None else 0
        self.alpha = float(self.rank or 1) if alpha is None or not self.rank else float(alpha)

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        return names - {"alpha"} in [left | right for left in _LEFT for right in _RIGHT]

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> LoKr:
        return cls(factors_of(tensors), alpha_of(tensors))

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> LoKr:
        """A new layer, shaped and drawn as LyCORIS does it.

        Options: `factor` (the wanted size of w1, -1: near the square root), `decompose_both`, `full_matrix`,
        `unbalanced_factorization`, `tucker`. A factor stays whole where the rank would not make it smaller.
        """
        width_out, width_in, *kernel = spec.shape
        numbers, rank = math.prod(kernel), spec.rank
        p, r = factorized(width_out, _factor(spec))
        q, s = factorized(width_in, _factor(spec))
        if spec.options.get("unbalanced_factorization"):
            p, r = r, p
        whole = bool(spec.options.get("full_matrix"))
        factors: dict[str, Tensor] = {}
        if spec.options.get("decompose_both") and rank < max(p, q) / 2 and not whole:
            factors |= {W1_A: uniform((p, rank), generator), W1_B: uniform((rank, q), generator)}
        else:
            factors[W1] = uniform((p, q), generator)
        if whole or rank >= max(r, s) / 2:
            factors[W2] = torch.zeros(r, s, *kernel)
        elif spec.options.get("tucker") and numbers > 1:
            factors[T2] = uniform((rank, rank, *kernel), generator)
            factors |= {W2_A: uniform((rank, r), generator), W2_B: torch.zeros(rank, s)}
        else:
            factors |= {W2_A: uniform((r, rank), generator), W2_B: torch.zeros(rank, s * numbers)}
        return cls(factors, spec.alpha)

    def to_tensors(self) -> dict[str, Tensor]:
        return {**self._factors(), "alpha": torch.tensor(self.alpha)}

    def delta(self, weight: Tensor) -> Tensor:
        self._check(weight)
        wide = wide_dtype(weight, next(self.parameters()))
        return torch.kron(self._w1(wide), self._w2(wide)).reshape(weight.shape) * self.scale

    def has_branch(self, op: Op) -> bool:
        return op.kind == "linear"

    def branch(self, x: Tensor, op: Op, weight: Tensor) -> Tensor:
        if op.kind != "linear":
            return super().branch(x, op, weight)
        self._check(weight)
        # kron(w1, w2) vec = w2 on each of q slices of the input, then w1 across the slices: never out x in numbers.
        slices = x.unflatten(-1, (self.left[1], self.right[1]))  # (..., in) -> (..., q, s)
        hidden = F.linear(slices, self._w2(x.dtype)).transpose(-1, -2)  # (..., r, q)
        return F.linear(hidden, self._w1(x.dtype)).transpose(-1, -2).flatten(-2) * self.scale  # (..., p r)

    def _check(self, weight: Tensor) -> None:
        size = (self.left[0] * self.right[0], self.left[1] * self.right[1])
        if weight.ndim < 2 or size != (weight.shape[0], weight[0].numel()):
            refuse_weight("LoKr", self._factors(), weight)

    def _w1(self, dtype: torch.dtype) -> Tensor:
        """(p, q)."""
        whole, a, b = self._of(W1, dtype), self._of(W1_A, dtype), self._of(W1_B, dtype)
        return whole.flatten(1) if whole is not None else a.flatten(1) @ b.flatten(1)  # type: ignore[union-attr]

    def _w2(self, dtype: torch.dtype) -> Tensor:
        """(r, s * kh * kw)."""
        whole, a, b = self._of(W2, dtype), self._of(W2_A, dtype), self._of(W2_B, dtype)
        if whole is not None:
            return whole.flatten(1)
        assert a is not None and b is not None
        core = self._of(T2, dtype)
        if core is None:
            return a.flatten(1) @ b.flatten(1)
        return torch.einsum("nmkl,nr,ms->rskl", core, a, b).flatten(1)

    def _of(self, name: str, dtype: torch.dtype) -> Tensor | None:
        factor = self._parameters.get(name)
        return factor.to(dtype) if factor is not None else None

    def _factors(self) -> dict[str, Tensor]:
        return {name: factor.detach() for name, factor in self.named_parameters()}


def factorized(width: int, factor: int = -1) -> tuple[int, int]:
    """`width` as m * n, m <= n: m is the largest divisor up to `factor` (any if negative) and the square root.

    A `factor` that divides `width` is taken as it is: (4, 2) for 8 and 4 comes as (2, 4).
    """
    if factor > 0 and width % factor == 0:
        return min(factor, width // factor), max(factor, width // factor)
    most = min(math.isqrt(width), width if factor < 0 else factor)
    m = max((d for d in range(1, most + 1) if width % d == 0), default=1)
    return m, width // m


def _factor(spec: LayerSpec) -> int:
    value = spec.options.get("factor", -1)
    if not isinstance(value, int):
        raise BadConfig(f"LoKr factor = {value!r} is no whole number; give -1 for automatic, or for example 8")
    return value


def _size(whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None) -> tuple[int, int] | None:
    """The size of a factor as a matrix; None if it cannot be built."""
    if whole is not None:
        return (whole.shape[0], math.prod(whole.shape[1:])) if whole.ndim > 1 else None
    if a is None or b is None or a.ndim < 2 or b.ndim < 2:
        return None
    if core is None:
        return (a.shape[0], math.prod(b.shape[1:])) if math.prod(a.shape[1:]) == b.shape[0] else None
    fit = a.ndim == b.ndim == 2 and core.ndim == 4 and core.shape[:2] == (a.shape[0], b.shape[0])
    return (a.shape[1], b.shape[1] * math.prod(core.shape[2:])) if fit else None
