"""Getting ldm modules ready for training adapters on them, and back again."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

CHECKPOINT_FLAGS = ("checkpoint", "use_checkpoint")


@contextmanager
def training_session(root: nn.Module, gradient_checkpointing: bool = False) -> Iterator[None]:
    """Freeze `root`, put it in eval mode and make gradients reach hooked adapters; everything is restored at the end.

    ldm's own checkpoint function lists the block's parameters as inputs and recomputes only for those, so an adapter
    in a hook gets no gradient from it: it is switched off. With `gradient_checkpointing` the blocks that have a
    `_forward` use torch's non-reentrant checkpoint in its place, which records whatever the recomputation touches.
    """
    replace_inference_tensors(root)
    modules = list(root.modules())
    grads = [(parameter, parameter.requires_grad) for parameter in root.parameters()]
    modes = [(module, module.training) for module in modules]
    flags = [
        (module, flag, getattr(module, flag))
        for module in modules
        for flag in CHECKPOINT_FLAGS
        if isinstance(module.__dict__.get(flag), bool)
    ]
    wrapped: list[nn.Module] = []
    try:
        for parameter, _ in grads:
            parameter.requires_grad_(False)
        for module, flag, _ in flags:
            setattr(module, flag, False)
        for module, _ in modes:
            module.training = False
        if gradient_checkpointing:
            wrapped = [module for module, _, _ in flags if _wrap_forward(module)]
        yield
    finally:
        for module in wrapped:
            module.__dict__.pop("forward", None)
        for module, flag, value in flags:
            setattr(module, flag, value)
        for module, mode in modes:
            module.training = mode
        for parameter, value in grads:
            parameter.requires_grad_(value)


def replace_inference_tensors(root: nn.Module) -> int:
    """Swap parameters and buffers made under `torch.inference_mode` for normal ones of the same bits; returns how many.

    Autograd cannot save an inference tensor for backward, and no flag turns one into a normal tensor: a copy made
    outside inference mode is the only way. One tensor is copied at a time, so the extra memory is one weight.
    """
    count = 0
    with torch.inference_mode(False), torch.no_grad():
        for module in root.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.is_inference():
                    module._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
                    count += 1
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_inference():
                    module._buffers[name] = buffer.clone()
                    count += 1
    return count


def _wrap_forward(module: nn.Module) -> bool:
    """Checkpoint the module's calls through an attribute of the instance, if it has ldm's `_forward` split."""
    if not hasattr(module, "_forward"):
        return False
    module.__dict__["forward"] = functools.partial(checkpoint, module._forward, use_reentrant=False)
    return True
