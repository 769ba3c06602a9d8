"""kohya's naming: `lora_unet_<path with underscores>.lora_up.weight`; also the prefix LyCORIS uses alone."""

from __future__ import annotations

import re

from lib_lora.keys import text_encoder, unet
from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey

Placed = tuple[LayerKey, str]
_PREFIXES = {
    "lora_unet_": UNET,
    "lora_te_": TE1,
    "lora_te1_": TE1,
    "lora_te2_": TE2,
    "lycoris_unet_": UNET,
    "lycoris_te_": TE1,
}
_WRITTEN = {UNET: "lora_unet_", TE1: "lora_te_", TE2: "lora_te2_"}
_LYCORIS = "lycoris_"  # one wrapped model, so no part in the name
_FLAT_UNET = {path.replace(".", "_"): path for path in unet.unet_paths()}
_FLAT_UNET |= {ldm.replace(".", "_"): path for ldm, path in unet.LDM_TO_DIFFUSERS.items()}
# Underscores stand for dots only at these places; `self_attn` and `q_proj` keep theirs.
_FLAT_TEXT = {path.replace(".", "_"): path for path in text_encoder.text_encoder_paths(1)}
_LAYER_NUMBER = re.compile(r"(?<=layers_)\d+(?=_)")


def _text_path(flat: str) -> str | None:
    number = _LAYER_NUMBER.search(flat)
    path = _FLAT_TEXT.get(_LAYER_NUMBER.sub("0", flat, count=1))
    return path.replace("layers.0.", f"layers.{number.group()}.") if path and number else path


def _layer(module: str) -> LayerKey | None:
    for prefix, part in _PREFIXES.items():
        if module.startswith(prefix):
            flat = module[len(prefix) :]
            path = _FLAT_UNET.get(flat) if part == UNET else _text_path(flat)
            return LayerKey(part, path) if path else None
    if module.startswith(_LYCORIS):
        flat = module[len(_LYCORIS) :]
        if flat in _FLAT_UNET:
            return LayerKey(UNET, _FLAT_UNET[flat])
        path = _text_path(flat)
        return LayerKey(TE1, path) if path else None
    return None


def parse(name: str) -> Placed | None:
    """`(layer, tensor)` for a tensor name of this dialect: ("unet:...to_q", "lora_up.weight"); None if not of it."""
    module, dot, tensor = name.partition(".")
    key = _layer(module) if dot else None
    return (key, tensor) if key else None


def speaks(name: str) -> bool:
    """Whether `name` has a prefix of this dialect, known layer or not."""
    return name.startswith((*_PREFIXES, _LYCORIS))


def layer_name(key: LayerKey) -> str:
    """The prefix kohya writes for `key` in an SD1 or SD2 file: `lora_unet_...`, `lora_te_...`."""
    return _WRITTEN[key.part] + key.flat
