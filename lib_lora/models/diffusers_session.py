"""Getting diffusers' and transformers' modules ready for training on them, and back again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from lib_lora.models.attention_modules import computed_by, replaced_forwards

# What one checkpoint spans in diffusers' UNet and in transformers' text encoders.
BLOCK_CLASSES = ("BasicTransformerBlock", "ResnetBlock2D", "CLIPEncoderLayer")


@contextmanager
def training_session(
    unet: nn.Module, roots: Iterable[nn.Module], gradient_checkpointing: bool = False, attention: str = "auto"
) -> Iterator[str]:
    """Compute the UNet's attention by the kernel `attention`, see `models.attention`; all is restored at the end.

    diffusers takes torch's sdpa by itself. Yields the kernel's name. Raises BadConfig if it does not work here.
    """
    with computed_by(unet.modules(), attention, own="sdpa") as name:
        with checkpointed(roots if gradient_checkpointing else ()):
            yield name


@contextmanager
def checkpointed(roots: Iterable[nn.Module]) -> Iterator[None]:
    """Recompute each block of the roots in the backward pass, through an attribute of the instance."""
    blocks = [module for root in roots for module in root.modules() if type(module).__name__ in BLOCK_CLASSES]
    with replaced_forwards({block: partial(checkpoint, block.forward, use_reentrant=False) for block in blocks}):
        yield
