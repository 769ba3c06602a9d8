"""Getting ldm and sgm modules ready for training adapters on them, and back again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lib_lora.models.attention import Attend, Trial, choose
from lib_lora.models.precision import compute_dtype, device_of

log = logging.getLogger(__name__)

CHECKPOINT_FLAGS = ("checkpoint", "use_checkpoint")
ATTENTION = ("to_q", "to_k", "to_v", "to_out", "heads")  # what every CrossAttention of ldm and sgm has
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
        name = stack.enter_context(_attention(modules, attention))
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
def replaced_forwards(forwards: dict[Any, Callable[..., Any]]) -> Iterator[None]:
    """While open, calls of each module go to another function, through an attribute of the instance."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, forward in before.items():
            vars(module).pop("forward", None)
            if forward is not None:  # somebody else's, which was there before
                vars(module)["forward"] = forward


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


@contextmanager
def _attention(modules: Iterable[nn.Module], name: str) -> Iterator[str]:
    found: list[Any] = [module for module in modules if all(hasattr(module, part) for part in ATTENTION)]
    trials = [
        Trial(int(m.heads), m.to_q.weight.shape[0] // int(m.heads), compute_dtype(m), device_of(m)) for m in found
    ]
    known, attend = choose(name, trials)
    log.info("training with attention: %s", known)
    with replaced_forwards({module: partial(_attend, module, attend) for module in found}):
        yield known


def _attend(module: Any, attend: Attend, x: Tensor, context: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """CrossAttention's forward; masks and the video models' extras are never given by the UNets trained here."""
    context = x if context is None else context
    q, k, v = (
        projected.unflatten(-1, (module.heads, -1)).transpose(1, 2)
        for projected in (module.to_q(x), module.to_k(context), module.to_v(context))
    )
    out: Tensor = module.to_out(attend(q, k, v).transpose(1, 2).flatten(2))
    return out


def _has_one_of(module: nn.Module, kinds: Iterable[tuple[str, ...]]) -> bool:
    return any(all(hasattr(module, part) for part in kind) for kind in kinds)
