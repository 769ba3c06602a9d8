"""kohya's naming, in which networks are written: `lora_unet_<path with underscores>.lora_up.weight`."""

from __future__ import annotations

from lib_lora.keys import unet
from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey

SDXL = "sdxl"
_WRITTEN = {UNET: "lora_unet_", TE1: "lora_te_", TE2: "lora_te2_"}


def layer_name(key: LayerKey, version: str = "sd1") -> str:
    """What kohya writes before the dot for `key` in a file of that version.

    SD1 and SD2: diffusers' names, `lora_te_`. SDXL: sgm's names, `lora_te1_`, `lora_te2_`.
    """
    if version != SDXL:
        return _WRITTEN[key.part] + key.flat
    if key.part == TE1:
        return "lora_te1_" + key.flat
    path = unet.DIFFUSERS_TO_SGM.get(key.path, key.path) if key.part == UNET else key.path
    return _WRITTEN[key.part] + path.replace(".", "_")
