"""Getting ldm and sgm modules ready for training adapters on them, and back again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lib_lora.models.attention_modules import computed_by, replaced_forwards

CHECKPOINT_FLAGS = ("checkpoint", "use_checkpoint")
# What a layer of transformers' CLIP has, and a block of OpenCLIP's.
TEXT_LAYERS = (("self_attn", "mlp", "layer_norm1"), ("attn", "mlp", "ln_1"))


@contextmanager
def training_session(root: nn.Module, gradient_checkpointing: bool = False, attention: str = "auto") -> Iterator[str]:
    """Freeze `root`, put it in eval mode and make gradients reach hooked adapters; everything is restored at the end.

    ldm's and sgm's own checkpoint function lists the block's parameters as inputs and recomputes only for those, so an
    adapter in a hook gets no gradient from it: it is switched off. With `gradient_checkpointing` the blocks that have a
    `_forward`, and the text encoders' layers, use torch's non-reentrant checkpoint in its place, which records whatever
    the recomputation touches. The attention of each instance is computed by the kernel chosen by `attention`, see
    `models.attention`: what the webui puts into the classes was made for pictures, and keeps whole attention maps for
    the backward pass. Yields the kernel's name. Raises BadConfig if that kernel does not work here.
    """
    replace_inference_tensors(root)
    modules = list(root.modules())
    with ExitStack() as stack:
        name = stack.enter_context(computed_by(modules, attention))
        stack.enter_context(_frozen(root))
        split = [module for module in modules if any(isinstance(vars(module).get(f), bool) for f in CHECKPOINT_FLAGS)]
        stack.enter_context(_without_flags(split))
        if gradient_checkpointing:
            blocks: list[Any] = [module for module in split if hasattr(module, "_forward")]
            inner: dict[Any, Any] = {block: block._forward for block in blocks}
            inner |= {module: module.forward for module in modules if _has_one_of(module, TEXT_LAYERS)}
            stack.enter_context(
                replaced_forwards({m: partial(checkpoint, f, use_reentrant=False) for m, f in inner.items()})
            )
        yield name


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


@contextmanager
def _frozen(root: nn.Module) -> Iterator[None]:
    grads = [(parameter, parameter.requires_grad) for parameter in root.parameters()]
    modes = [(module, module.training) for module in root.modules()]
    try:
        for parameter, _ in grads:
            parameter.requires_grad_(False)
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, value in grads:
            parameter.requires_grad_(value)


@contextmanager
def _without_flags(modules: Iterable[nn.Module]) -> Iterator[None]:
    found = [(vars(m), flag) for m in modules for flag in CHECKPOINT_FLAGS if isinstance(vars(m).get(flag), bool)]
    values = [own[flag] for own, flag in found]
    try:
        for own, flag in found:
            own[flag] = False
        yield
    finally:
        for (own, flag), value in zip(found, values):
            own[flag] = value


def _has_one_of(module: nn.Module, kinds: Iterable[tuple[str, ...]]) -> bool:
    return any(all(hasattr(module, part) for part in kind) for kind in kinds)
