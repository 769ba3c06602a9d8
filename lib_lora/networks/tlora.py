"""T-LoRA: orthogonal factors with singular values of their own, counted from where training started.

`delta = alpha / rank * (P diag(l) Q - P_0 diag(l_0) Q_0)`. https://arxiv.org/abs/2507.05964
Training masks ranks by timestep t of T: only the first `r(t) = int(((T - t) / T)^a (rank - least)) + least` are on,
and so does the authors' sampler; least and a, 1 unless the trainer was told otherwise, are in no file. One merge for
all steps has every rank on, as LyCORIS has without a mask; `truncated(r(t))` is the layer as the mask has it at t.

The start P_0, l_0, Q_0 is in the authors' files (`base_p.weight`, `base_lambda`, `base_q.weight`). LyCORIS leaves it
out and, reading a file, takes it from the base weight again: its largest singular values and their vectors. So does
this. If training was told to start from the last or middle ones, the product P diag(l) Q shows it, for it is still
near its start. What started from random numbers (`use_data_init = false`) cannot be had back, and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch
from lib_lora.networks.base import Layer, LayerSpec, read_alpha, wide_dtype
from lib_lora.networks.checks import refuse, refuse_weight

P, LAMBDA, Q, ALPHA = "p_layer.weight", "lambda_layer", "q_layer.weight", "alpha"
START = ("base_p.weight", "base_lambda", "base_q.weight")


class Triple(NamedTuple):
    """P (out, rank), singular values (1, rank) and Q (rank, in), P and Q with trailing axes of 1 on convolutions."""

    p: Tensor
    values: Tensor
    q: Tensor

    def product(self, ranks: int, dtype: torch.dtype) -> Tensor:
        """P diag(values) Q of the first `ranks`, (out, in)."""
        p, values, q = self.p.to(dtype).flatten(1), self.values.to(dtype).flatten(), self.q.to(dtype).flatten(1)
        return p[:, :ranks] @ (values[:ranks, None] * q[:ranks])  # (out, ranks) @ (ranks, in)


class TLora(Layer):
    """The factors now, and at the start if the file has that.

    1x1 factors of larger convolutions, which LyCORIS writes but cannot run itself, fit no weight here either.
    """

    kind = "tlora"
    start_p: Tensor
    start_values: Tensor
    start_q: Tensor

    def __init__(self, now: Triple, start: Triple | None = None, alpha: float | None = None) -> None:
        super().__init__()
        for triple in (now, start or now):
            rank = triple.values.numel()
            p, q = triple.p, triple.q
            if p.dim() < 2 or q.dim() < 2 or (p.shape[1], p[:1].numel(), q.shape[0]) != (rank, rank, rank):
                refuse(self.kind, dict(zip((P, LAMBDA, Q), triple)), "expected them to share a rank")
        if start is not None and [t.numel() for t in start] != [t.numel() for t in now]:
            refuse(self.kind, {P: start.p, Q: start.q}, "expected a start of the factors' own shapes")
        self.p, self.values, self.q = (nn.Parameter(tensor) for tensor in now)
        self.has_start = start is not None
        for name, tensor in zip(("start_p", "start_values", "start_q"), start or ()):
            self.register_buffer(name, tensor)
        self.rank = int(now.q.shape[0])
        self.alpha = float(self.rank) if alpha is None else float(alpha)
        self.ranks_on = self.rank

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        return names - {ALPHA} in ({P, LAMBDA, Q}, {P, LAMBDA, Q, *START})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TLora:
        start = Triple(*(tensors[name] for name in START)) if START[0] in tensors else None
        alpha = read_alpha(tensors, math.nan)
        now = Triple(tensors[P], tensors[LAMBDA], tensors[Q])
        return cls(now, start, None if math.isnan(alpha) else alpha)

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> TLora:
        """A random start, kept in the file: orthonormal P and Q, singular values 1 / rank."""
        out, columns = spec.shape[0], math.prod(spec.shape[1:])
        if max(spec.shape[2:], default=1) > 1 or spec.rank > min(out, columns):
            raise ShapeMismatch(f"no T-LoRA of rank {spec.rank} fits a weight {spec.shape}; leave this layer out")
        ones = (1,) * len(spec.shape[2:])
        p, q = (torch.linalg.qr(torch.randn(side, spec.rank, generator=generator))[0] for side in (out, columns))
        start = Triple(
            p.reshape(out, spec.rank, *ones),
            torch.full((1, spec.rank), 1 / spec.rank),
            q.t().contiguous().reshape(spec.rank, columns, *ones),
        )
        return cls(Triple(*(tensor.clone() for tensor in start)), start, spec.alpha)

    def to_tensors(self) -> dict[str, Tensor]:
        tensors = {P: self.p.detach(), LAMBDA: self.values.detach(), Q: self.q.detach()}
        if self.has_start:
            tensors |= dict(zip(START, (self.start_p, self.start_values, self.start_q)))
        return {**tensors, ALPHA: torch.tensor(self.alpha)}

    def delta(self, weight: Tensor) -> Tensor:
        numbers = self.p.flatten(1).shape[0] * self.q.flatten(1).shape[1]
        if weight.dim() < 2 or self.p.shape[0] != weight.shape[0] or numbers != weight.numel():
            refuse_weight(self.kind, {P: self.p, Q: self.q}, weight)
        wide = wide_dtype(weight, self.p)
        now = Triple(self.p, self.values, self.q)
        if self.has_start:
            start = Triple(self.start_p, self.start_values, self.start_q)
        else:
            start = _start_in(weight.detach().to(wide).flatten(1), now)
        change = now.product(self.ranks_on, wide) - start.product(self.ranks_on, wide)
        return change.reshape(weight.shape) * self.scale

    def truncated(self, ranks: int) -> TLora:
        """The first ranks of the factors and of the start. For applying: its tensors are still all of them."""
        start = Triple(self.start_p, self.start_values, self.start_q) if self.has_start else None
        layer = TLora(Triple(self.p.detach(), self.values.detach(), self.q.detach()), start, self.alpha)
        layer.ranks_on = min(ranks, self.ranks_on)
        return layer


def _start_in(weight: Tensor, now: Triple) -> Triple:
    """The largest, last or middle singular vectors of `weight` (out, in), whichever `now` is nearest to."""
    rank = now.values.numel()
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    spare = max(s.numel() - rank, 0)
    with torch.no_grad():
        reached = now.product(rank, weight.dtype)
        starts = [Triple(u[:, i : i + rank], s[i : i + rank], v[i : i + rank]) for i in (0, spare, spare // 2)]
        distances = [float((reached - start.product(rank, weight.dtype)).norm()) for start in starts]
        nearest = distances.index(min(distances))
        if distances[nearest] > float(reached.norm()):
            raise ShapeMismatch(
                "this T-LoRA layer did not start from singular vectors of the base weight, and the file does not hold "
                f"its start ({', '.join(START)}); use the base model it was trained on"
            )
    return starts[nearest]
