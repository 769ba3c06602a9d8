"""The base model as training wants it, and as it was when that is over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from lib_lora.errors import BadConfig
from lib_lora.models.diffusers_session import checkpointed
from lib_lora.ports import DiffusionModel


@contextmanager
def frozen(model: DiffusionModel, *, checkpointing: bool, attention: str = "auto") -> Iterator[None]:
    """The base as training wants it: no gradients of its own, eval mode; everything is as before when the block ends.

    A model that can do more (choose how attention is computed; ldm's own checkpoint function starves hooked layers of
    gradients) brings a `training_session(gradient_checkpointing, attention)`, which is entered too.
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


def _session(model: DiffusionModel, checkpointing: bool, attention: str) -> AbstractContextManager[Any]:
    own = getattr(model, "training_session", None)
    if own is not None:
        return own(gradient_checkpointing=checkpointing, attention=attention)
    if attention not in ("auto", "sdpa"):
        raise BadConfig(f"base.attention = {attention!r} is not for this model, which has its own: set it to auto")
    return checkpointed(model.roots().values() if checkpointing else ())
