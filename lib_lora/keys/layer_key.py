"""The one canonical name of a layer: which part of the model, and its module path in diffusers' naming."""

from __future__ import annotations

from dataclasses import dataclass

UNET, TE1, TE2 = "unet", "te1", "te2"
PARTS = (UNET, TE1, TE2)


@dataclass(frozen=True, order=True)
class LayerKey:
    """A layer of the base model.

    `part` is one of `PARTS`. `path` is the module path with dots in the naming of diffusers / transformers,
    e.g. `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q` or
    `text_model.encoder.layers.0.self_attn.q_proj`, without `.weight`.
    """

    part: str
    path: str

    def __str__(self) -> str:
        return f"{self.part}:{self.path}"

    @property
    def flat(self) -> str:
        """The path as kohya writes it: dots replaced by underscores."""
        return self.path.replace(".", "_")
