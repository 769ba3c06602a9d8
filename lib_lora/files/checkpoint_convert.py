"""A CompVis state dict <-> the state dicts of diffusers' UNet and VAE and transformers' text encoder."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lib_lora.errors import BadFile
from lib_lora.keys.checkpoint import COMPVIS_PREFIXES, VAE, checkpoint_key, diffusers_to_ldm
from lib_lora.keys.layer_key import TE1, UNET
from lib_lora.keys.vae import CONV_IN_LDM

Parts = dict[str, dict[str, Tensor]]


def compvis_to_parts(state: Mapping[str, Tensor]) -> Parts:
    """`{"unet": ..., "vae": ..., "te1": ...}` in diffusers / transformers names; tensors are views, not copies.

    Names outside these three networks (schedules, EMA copies, `position_ids`) are left out.
    Raises BadFile if a whole part is missing, which means that it is no SD1 checkpoint.
    """
    parts: Parts = {UNET: {}, VAE: {}, TE1: {}}
    for name, tensor in state.items():
        hit = checkpoint_key(name)
        if hit is None or hit[1] not in ("weight", "bias"):
            continue
        key, parameter = hit
        if key.part == VAE and key.path in CONV_IN_LDM and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]  # 1x1 convolution -> Linear
        parts[key.part][f"{key.path}.{parameter}"] = tensor
    missing = [part for part, content in parts.items() if not content]
    if missing:
        raise BadFile(
            f"no weights of {', '.join(missing)} among {len(state)} tensors: "
            "this is not a complete SD1 checkpoint in CompVis naming; choose an SD1.x checkpoint file"
        )
    return parts


def parts_to_compvis(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The inverse of `compvis_to_parts`. Raises BadFile naming the first tensor that SD1 does not have."""
    state: dict[str, Tensor] = {}
    for part, content in parts.items():
        for name, tensor in content.items():
            path, _, parameter = name.rpartition(".")
            if parameter == "position_ids":
                state[COMPVIS_PREFIXES[part] + name] = tensor
                continue
            ldm = diffusers_to_ldm(part, path)
            if ldm is None:
                raise BadFile(f"{part} has a tensor {name!r} that no SD1 model has; only SD1 can be converted")
            if part == VAE and path in CONV_IN_LDM and parameter == "weight" and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
            state[f"{COMPVIS_PREFIXES[part]}{ldm}.{parameter}"] = tensor
    return state
