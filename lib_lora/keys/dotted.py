"""Names with dots: diffusers' attention processors, PEFT, and bare module paths (ComfyUI)."""

from __future__ import annotations

import re

from lib_lora.keys import text_encoder, unet
from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey

Placed = tuple[LayerKey, str]
DIFFUSERS, PEFT, BARE = "diffusers", "peft", "bare"
_WRAPPER = "base_model.model."
_PARTS = {"unet.": UNET, "text_encoder.": TE1, "text_encoder_2.": TE2, "diffusion_model.": UNET}
_FACTORS = {"A": "lora_down.weight", "B": "lora_up.weight"}
# path . tensor, most special first.
_PEFT = re.compile(r"(?P<path>.+)\.lora_(?P<factor>[AB])(?:\.[^.]+)?\.weight")
_PROCESSOR = re.compile(
    r"(?P<path>.+?)\.(?:processor\.)?(?P<proj>to_q|to_k|to_v|to_out)_lora\.(?P<factor>up|down)\.weight"
)
_LINEAR_LAYER = re.compile(r"(?P<path>.+)\.(?:lora_linear_layer|lora)\.(?P<factor>up|down)\.weight")
_TEXT_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_KNOWN_UNET = frozenset(unet.unet_paths())


def _split(name: str) -> tuple[str, str, str] | None:
    """(module path, tensor, dialect)."""
    if found := _PEFT.fullmatch(name):
        return found["path"], _FACTORS[found["factor"]], PEFT
    if found := _PROCESSOR.fullmatch(name):
        in_text = ".self_attn" in found["path"]
        projection = _TEXT_PROJECTIONS[found["proj"]] if in_text else found["proj"]
        path = f"{found['path']}.{projection}"
        return path + (".0" if projection == "to_out" else ""), f"lora_{found['factor']}.weight", DIFFUSERS
    if found := _LINEAR_LAYER.fullmatch(name):
        return found["path"], f"lora_{found['factor']}.weight", DIFFUSERS
    for marker in (".lora_", ".alpha", ".dora_scale"):
        path, dot, _ = name.partition(marker)
        if dot:
            return path, name[len(path) + 1 :], BARE
    return None


def _key(path: str) -> LayerKey | None:
    prefix = next((prefix for prefix in _PARTS if path.startswith(prefix)), "")
    part = _PARTS[prefix] if prefix else TE1 if path.startswith("text_model.") else UNET
    path = path[len(prefix) :].removeprefix(_WRAPPER)
    if part == UNET:
        path = unet.LDM_TO_DIFFUSERS.get(path, path)
        return LayerKey(part, path) if path in _KNOWN_UNET else None
    return LayerKey(part, path) if text_encoder.is_text_encoder_path(path) else None


def parse(name: str) -> tuple[Placed, str] | None:
    """`((layer, tensor), dialect)` for a tensor name of these dialects, or None."""
    split = _split(name.removeprefix(_WRAPPER))
    key = _key(split[0]) if split else None
    return ((key, split[1]), split[2]) if split and key else None
