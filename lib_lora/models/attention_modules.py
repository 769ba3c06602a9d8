"""The attention modules of ldm, sgm and diffusers: which they are, and computing them by a kernel that was chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from lib_lora.models.attention import Attend, Trial, choose
from lib_lora.models.precision import compute_dtype, device_of

log = logging.getLogger(__name__)
PARTS = ("to_q", "to_k", "to_v", "to_out", "heads")  # what every attention module of these UNets has


@contextmanager
def computed_by(modules: Iterable[nn.Module], name: str, own: str = "") -> Iterator[str]:
    """While open, the attention modules among `modules` are computed by the kernel `name` ("auto": by one that works).

    `own`: the kernel they are computed by anyhow; if it is the one chosen they are left alone.
    Yields the kernel's name. Raises BadConfig if the kernel does not work here.
    """
    found: list[Any] = [module for module in modules if all(hasattr(module, part) for part in PARTS)]
    trials = [
        Trial(int(m.heads), m.to_q.weight.shape[0] // int(m.heads), compute_dtype(m), device_of(m)) for m in found
    ]
    known, attend = choose(name, trials)
    log.info("training with attention: %s", known)
    with replaced_forwards({} if known == own else {module: partial(_attend, module, attend) for module in found}):
        yield known


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


def _attend(
    module: Any,
    attend: Attend,
    x: Tensor,
    context: Tensor | None = None,
    *_: Any,
    encoder_hidden_states: Tensor | None = None,  # what diffusers calls the context
    **__: Any,
) -> Tensor:
    """CrossAttention's forward; masks and the video models' extras are never given by the UNets trained here."""
    words = encoder_hidden_states if context is None else context
    words = x if words is None else words
    q, k, v = (
        projected.unflatten(-1, (module.heads, -1)).transpose(1, 2)
        for projected in (module.to_q(x), module.to_k(words), module.to_v(words))
    )
    out = attend(q, k, v).transpose(1, 2).flatten(2)
    for layer in module.to_out:  # projection and dropout
        out = layer(out)
    return out
