"""What the shapes of a layer's tensors tell about the base weight, whatever the network's type."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lib_lora.keys.layer_key import UNET, LayerKey

Shape = tuple[int, ...]
CLIP_L, CLIP_H, CLIP_G = 768, 1024, 1280  # text states of SD1, of SD2, of SDXL's second encoder
_CROSS = (".attn2.to_k", ".attn2.to_v")
_SQUARE = (".q_proj", ".k_proj", ".v_proj", ".out_proj")
# Tensors whose second axis is the base weight's input axis.
_SECOND_AXIS = ("lora_down.weight", "hada_w1_b", "diff", "set_weight", "q_layer.weight")


def input_width(tensors: Mapping[str, Shape]) -> int | None:
    """The base weight's input width, or None if these tensors do not show it. `tensors` are shapes by kohya's names."""
    for name in _SECOND_AXIS:
        shape = tensors.get(name, ())
        if len(shape) > 1:
            return shape[1]
    columns = [_columns(tensors, "lokr_w1"), _columns(tensors, "lokr_w2")]
    if all(columns):
        return math.prod(columns)
    if len(shape := tensors.get("a2.weight", ())) > 1:
        return max(shape)  # GLoRA's two layouts hold it transposed; a rank is smaller than a width
    for name in ("oft_r", "oft_R.weight"):  # PEFT turns the input in blocks
        if len(shape := tensors.get(name, ())) > 1:
            return shape[0] * (shape[1] if len(shape) > 2 else _side(shape[1]))
    if "on_input" in tensors and (shape := tensors.get("weight", ())):
        return math.prod(shape)
    return None


def output_width(tensors: Mapping[str, Shape]) -> int | None:
    """The base weight's output width, or None if these tensors do not show it."""
    for name in ("lora_up.weight", "hada_w1_a", "diff", "set_weight", "diff_b", "b_norm", "w_norm", "p_layer.weight"):
        if shape := tensors.get(name, ()):
            return shape[0]
    if len(shape := tensors.get("oft_blocks", ())) > 2:
        return shape[-3] * shape[-1]
    rows = [_rows(tensors, "lokr_w1"), _rows(tensors, "lokr_w2")]
    return math.prod(rows) if all(rows) else None


def text_width(key: LayerKey, tensors: Mapping[str, Shape]) -> int | None:
    """The width of the text states as this layer shows it; None for layers and types that do not."""
    if key.part == UNET:
        return input_width(tensors) if key.path.endswith(_CROSS) else None
    if key.path.endswith(_SQUARE):
        return input_width(tensors) or output_width(tensors)
    return input_width(tensors) if key.path.endswith(".fc1") else None


def _columns(tensors: Mapping[str, Shape], name: str) -> int:
    shape = tensors.get(name) or tensors.get(f"{name}_b", ())
    return shape[1] if len(shape) > 1 else 0


def _rows(tensors: Mapping[str, Shape], name: str) -> int:
    shape = tensors.get(name) or tensors.get(f"{name}_a", ())
    return shape[0] if len(shape) > 1 else 0


def _side(entries: int) -> int:
    """The side b of a skew-symmetric matrix of which b (b - 1) / 2 entries are kept."""
    return (1 + math.isqrt(1 + 8 * entries)) // 2
