"""The CLIP text encoders' module paths. ldm and sgm use the same transformers classes for CLIP-L, so names are equal.

SD2's encoder and SDXL's second one are OpenCLIP towers there; `keys.open_clip` says where these keep each path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from lib_lora.keys.layer_key import TE1, TE2

SD1_LAYERS = 12
# Blocks as transformers counts them; SD2's OpenCLIP tower has one more, which it never runs.
LAYERS: Mapping[str, Mapping[str, int]] = {"sd1": {TE1: 12}, "sd2": {TE1: 23}, "sdxl": {TE1: 12, TE2: 32}}
# transformers registers key and value before query; cloneofsimo's numbered files depend on that.
_ATTENTION = ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj")
_LAYER = (*_ATTENTION, "layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2")
PROJECTION = "text_projection"  # only SDXL's second encoder uses it
_PATH = re.compile(
    r"text_projection|text_model\.(?:embeddings\.(?:token|position)_embedding|final_layer_norm"
    r"|encoder\.layers\.(?:0|[1-9][0-9]{0,2})\.(?:" + "|".join(re.escape(name) for name in _LAYER) + r"))"
)


def text_encoder_paths(layers: int = SD1_LAYERS, projection: bool = False) -> tuple[str, ...]:
    """Every module of a CLIP text encoder that has a weight, in transformers' module order.

    `projection` is for the encoders that end in a text projection (SDXL's second).
    """
    return (
        "text_model.embeddings.token_embedding",
        "text_model.embeddings.position_embedding",
        *(f"text_model.encoder.layers.{i}.{name}" for i in range(layers) for name in _LAYER),
        "text_model.final_layer_norm",
        *((PROJECTION,) if projection else ()),
    )


def text_targets(layers: int = SD1_LAYERS) -> tuple[str, ...]:
    """The layers kohya trains by default, six a block (SD1 72, SD2 138, SDXL 72 + 192): attention and MLP."""
    return tuple(p for p in text_encoder_paths(layers) if ".self_attn." in p or ".mlp." in p)


def attention_targets(layers: int = SD1_LAYERS) -> tuple[str, ...]:
    """The Linear children of CLIPAttention, in module order: what cloneofsimo trains (48 for SD1)."""
    return tuple(p for p in text_encoder_paths(layers) if ".self_attn." in p)


def is_text_encoder_path(path: str) -> bool:
    """Whether `path` names a module of a CLIP text encoder of any depth."""
    return _PATH.fullmatch(path) is not None
