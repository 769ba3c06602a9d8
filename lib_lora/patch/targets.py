"""The parameters of a model that a network changes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib_lora.ports import Slot

# Where the webui keeps a wider copy of a weight or bias that it stores in 8 bits, on the same module.
WIDER = {"weight": "fp16_weight", "bias": "fp16_bias"}
EIGHT_BIT = tuple(getattr(torch, n) for n in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, n))
# bfloat16 reaches as far as float32; these do not.
NARROW = (torch.float16, *EIGHT_BIT)
WRITABLE = (torch.float32, torch.float64, torch.bfloat16, *NARROW)


@dataclass(frozen=True)
class Piece:
    """The part of a parameter that is one layer's: all of it, or some `rows` of a fused one, or its transpose."""

    start: int = 0
    stop: int | None = None
    transposed: bool = False

    @classmethod
    def of(cls, slot: Slot) -> Piece:
        """A slot's part of its parameters."""
        rows = slot.rows
        return cls(transposed=slot.transposed) if rows is None else cls(rows.start, rows.stop, slot.transposed)

    def view(self, whole: Tensor) -> Tensor:
        """This piece of a parameter's tensor: writes go to the whole."""
        part = whole if self.stop is None else whole[self.start : self.stop]
        return part.t() if self.transposed and part.dim() == 2 else part


@dataclass(frozen=True)
class Target:
    """One parameter of one module."""

    module: nn.Module
    name: str = "weight"

    @property
    def parameter(self) -> nn.Parameter | None:
        """The parameter as it is now, the module's own object; None for a bias the module does not have."""
        return self.module._parameters.get(self.name)  # what is computed anew at each look cannot be written to

    def wider(self, like: Tensor) -> Tensor | None:
        """The wider copy that a webui keeps of a parameter stored in 8 bits, on `like`'s device, if there is one."""
        if like.dtype not in EIGHT_BIT:
            return None
        copy = getattr(self.module, WIDER.get(self.name, ""), None)
        if isinstance(copy, Tensor) and copy.shape == like.shape and copy.is_floating_point() and not copy.is_meta:
            return copy.detach().to(like.device)
        return None

    def fault(self) -> str | None:
        """Why nothing can be written here, with what to do; None if something can."""
        if self.name not in self.module._parameters:
            return "something computes this weight from others; switch off what changed the model, then load it again"
        held = self.parameter if self.parameter is not None else self.module.weight  # the bias is to be made
        assert isinstance(held, Tensor)
        if held.is_meta:
            return "the weight is not in memory; load the checkpoint again"
        if held.dtype not in WRITABLE:
            stored = str(held.dtype).removeprefix("torch.")
            return f"the weight is stored as {stored}, which cannot be merged into; load the model unquantised"
        return None


def writing(parameter: nn.Parameter) -> AbstractContextManager[object]:
    """In here `parameter` may be written: one that was made in inference mode nowhere but in that mode."""
    return torch.inference_mode() if parameter.is_inference() else nullcontext()
