"""The base model as training wants it, and as it was when that is over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from lib_lora.ports import DiffusionModel

# What one checkpoint spans in diffusers' UNet and in transformers' text encoders.
BLOCK_CLASSES = ("BasicTransformerBlock", "ResnetBlock2D", "CLIPEncoderLayer")


@contextmanager
def frozen(model: DiffusionModel, *, checkpointing: bool, attention: str = "auto") -> Iterator[None]:
    """The base as training wants it: no gradients of its own, eval mode; everything is as before when the block ends.

    A model that needs more (ldm's own checkpoint function starves hooked layers of gradients) brings a
    `training_session(gradient_checkpointing, attention)`, which is entered too.
    """
    roots = list(model.roots().values())
    grads = [(p, p.requires_grad) for root in roots for p in root.parameters()]
    modes = [(m, m.training) for root in roots for m in root.modules()]
    try:
        for parameter, _ in grads:
            parameter.requires_grad_(False)
        for module, _ in modes:
            module.training = False
        with _session(model, checkpointing, attention):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, wanted in grads:
            parameter.requires_grad_(wanted)


def _session(model: DiffusionModel, checkpointing: bool, attention: str) -> AbstractContextManager[None]:
    own = getattr(model, "training_session", None)
    if own is not None:
        return own(gradient_checkpointing=checkpointing, attention=attention)
    return _checkpointed(model.roots().values() if checkpointing else ())


@contextmanager
def _checkpointed(roots: Iterable[nn.Module]) -> Iterator[None]:
    """Recompute each block of the roots in the backward pass, through an attribute of the instance."""
    blocks = [module for root in roots for module in root.modules() if type(module).__name__ in BLOCK_CLASSES]
    try:
        for block in blocks:
            block.__dict__["forward"] = partial(checkpoint, block.forward, use_reentrant=False)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
