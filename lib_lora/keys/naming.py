"""Canonical layers -> the names diffusers and PEFT know them by; kohya's are in `keys.kohya`."""

from __future__ import annotations

from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey

FOLDERS = {UNET: "unet", TE1: "text_encoder", TE2: "text_encoder_2"}  # diffusers' names of the parts
PEFT_WRAPPER = "base_model.model."
_CONVOLUTIONS = ("conv_in", "conv_out", "conv", "conv1", "conv2", "conv_shortcut")
_NO_BIAS = ("to_q", "to_k", "to_v")


def diffusers_name(key: LayerKey) -> str:
    """E.g. `unet.mid_block.attentions.0.proj_in`."""
    return f"{FOLDERS[key.part]}.{key.path}"


def diffusers_factors(key: LayerKey) -> tuple[str, str]:
    """What diffusers writes behind a layer for (up, down): PEFT's names in a UNet, its own in text encoders."""
    if key.part == UNET:
        return "lora_B.weight", "lora_A.weight"
    # Versions until 0.33 take a text encoder's file for theirs only if they find this name.
    return "lora_linear_layer.up.weight", "lora_linear_layer.down.weight"


def weight_axes(key: LayerKey, version: str) -> int | None:
    """How many axes the base weight has, 2 or 4; None where the version does not settle it, or for norms."""
    leaf = key.path.rpartition(".")[2]
    if key.part != UNET:
        return 2
    if leaf in _CONVOLUTIONS:
        return 4
    if leaf in ("proj_in", "proj_out"):
        return {"sd1": 4, "sd2": 2, "sdxl": 2}.get(version)
    return None if "norm" in leaf else 2


def is_embedding(key: LayerKey) -> bool:
    """Whether the base layer is a table of embeddings."""
    return key.path.endswith(("token_embedding", "position_embedding"))


def has_kernel(key: LayerKey) -> bool:
    """Whether the base layer is a convolution larger than 1x1."""
    return key.part == UNET and key.path.rpartition(".")[2] in _CONVOLUTIONS and not key.path.endswith("conv_shortcut")


def has_bias(key: LayerKey) -> bool:
    """Whether the base layer has a bias of its own."""
    return key.part != UNET or key.path.rpartition(".")[2] not in _NO_BIAS
