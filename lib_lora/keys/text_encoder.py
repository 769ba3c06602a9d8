"""The CLIP text encoder's module paths. SD1's ldm uses the same transformers classes, so names are equal."""

from __future__ import annotations

import re

SD1_LAYERS = 12
# transformers registers key and value before query; cloneofsimo's numbered files depend on that.
_ATTENTION = ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj")
_LAYER = (*_ATTENTION, "layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2")
# Any depth: SD2 has 23 layers, SDXL's second encoder 32.
_PATH = re.compile(
    r"text_projection|text_model\.(?:embeddings\.(?:token|position)_embedding|final_layer_norm|encoder\.layers\.\d+\.(?:"
    + "|".join(re.escape(name) for name in _LAYER)
    + r"))"
)


def text_encoder_paths(layers: int = SD1_LAYERS) -> tuple[str, ...]:
    """Every module of a CLIP text encoder that has a weight, in transformers' module order."""
    return (
        "text_model.embeddings.token_embedding",
        "text_model.embeddings.position_embedding",
        *(f"text_model.encoder.layers.{i}.{name}" for i in range(layers) for name in _LAYER),
        "text_model.final_layer_norm",
    )


def text_targets(layers: int = SD1_LAYERS) -> tuple[str, ...]:
    """The layers kohya trains by default, 72 for SD1: attention projections and the MLP."""
    return tuple(p for p in text_encoder_paths(layers) if ".self_attn." in p or ".mlp." in p)


def attention_targets(layers: int = SD1_LAYERS) -> tuple[str, ...]:
    """The Linear children of CLIPAttention, in module order: what cloneofsimo trains (48 for SD1)."""
    return tuple(p for p in text_encoder_paths(layers) if ".self_attn." in p)


def is_text_encoder_path(path: str) -> bool:
    """Whether `path` names a module of a CLIP text encoder of any depth."""
    return _PATH.fullmatch(path) is not None
