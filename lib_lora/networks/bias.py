"""Changes of the bias, alone or beside any other type: `diff_b`, and the bias of a LoRA's second factor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch
from lib_lora.networks.around import Around
from lib_lora.networks.base import Layer, LayerSpec, Op, wide_dtype

DIFF_B, UP_BIAS = "diff_b", "lora_up.bias"


class Bias(Around):
    """`b' = b + diff_b`, diff_b (out): LyCORIS' `full` and ComfyUI's extraction write it, also for layers without a
    bias of their own."""

    kind = "bias"
    NAMES = frozenset({DIFF_B})

    def __init__(self, core: Layer | None, diff_b: Tensor) -> None:
        super().__init__(core)
        self.diff_b = nn.Parameter(diff_b)
        self.changes_bias = True

    @classmethod
    def wrap(cls, core: Layer | None, tensors: Mapping[str, Tensor]) -> Bias:
        return cls(core, tensors[DIFF_B])

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Bias:
        return cls(None, tensors[DIFF_B])

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> Bias:
        """A change of the bias alone, zeros."""
        return cls(None, torch.zeros(spec.shape[0]))

    def own_tensors(self) -> dict[str, Tensor]:
        return {DIFF_B: self.diff_b.detach()}

    def bias_delta(self, bias: Tensor) -> Tensor:
        return super().bias_delta(bias) + bias_shaped(self.diff_b, DIFF_B, bias)

    def truncated(self, ranks: int) -> Bias:
        return Bias(self.core.truncated(ranks) if self.core is not None else None, self.diff_b.detach())

    def has_branch(self, op: Op) -> bool:
        return self.core is not None and self.core.has_branch(op)

    def branch(self, x: Tensor, op: Op, weight: Tensor) -> Tensor:
        if self.core is None:
            return super().branch(x, op, weight)
        return _with_bias(self.core.branch(x, op, weight), op, self.diff_b)


class UpBias(Around):
    """`b' = b + alpha / rank * up_bias`: the bias of lora_B, (out), which peft trains with `lora_bias=True`."""

    kind = "lora_bias"
    NAMES = frozenset({UP_BIAS})

    def __init__(self, core: Layer, up_bias: Tensor) -> None:
        super().__init__(core)
        self.core: Layer = core
        self.up_bias = nn.Parameter(up_bias)
        self.changes_bias = True

    @classmethod
    def wrap(cls, core: Layer | None, tensors: Mapping[str, Tensor]) -> UpBias | None:
        return cls(core, tensors[UP_BIAS]) if core is not None else None

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> UpBias:
        raise ShapeMismatch(f"{UP_BIAS} without the factors it belongs to; the file is damaged, get it again")

    def own_tensors(self) -> dict[str, Tensor]:
        return {UP_BIAS: self.up_bias.detach()}

    def bias_delta(self, bias: Tensor) -> Tensor:
        return super().bias_delta(bias) + bias_shaped(self.up_bias, UP_BIAS, bias) * self.scale

    def truncated(self, ranks: int) -> UpBias:
        return UpBias(self.core.truncated(ranks), self.up_bias.detach())

    def has_branch(self, op: Op) -> bool:
        return self.core.has_branch(op)

    def branch(self, x: Tensor, op: Op, weight: Tensor) -> Tensor:
        return _with_bias(self.core.branch(x, op, weight), op, self.up_bias * self.scale)


def bias_shaped(change: Tensor, name: str, bias: Tensor) -> Tensor:
    """`change` in the bias's shape, in float32 or wider. Raises ShapeMismatch if it is not of that size."""
    if change.numel() != bias.numel():
        raise ShapeMismatch(
            f"{name} {tuple(change.shape)} does not fit a bias {tuple(bias.shape)}; "
            "the network is for another base model"
        )
    return change.to(wide_dtype(bias, change)).reshape(bias.shape)


def _with_bias(out: Tensor, op: Op, bias: Tensor) -> Tensor:
    """`out` with a number for each channel added: the second axis of a convolution or group norm, else the last."""
    bias = bias.to(out.dtype).flatten()
    return out + (bias.view(-1, *(1,) * (out.ndim - 2)) if op.kind in ("conv2d", "group_norm") else bias)
