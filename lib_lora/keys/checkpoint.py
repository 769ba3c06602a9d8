"""Names inside a whole checkpoint <-> canonical names, and the layers a network is trained on by default."""

from __future__ import annotations

from collections.abc import Iterable

from lib_lora.keys import text_encoder, unet, vae
from lib_lora.keys.layer_key import TE1, UNET, LayerKey

VAE = "vae"  # not a part a network can have, but a part of a checkpoint
COMPVIS_PREFIXES = {UNET: "model.diffusion_model.", VAE: "first_stage_model.", TE1: "cond_stage_model.transformer."}
DIFFUSERS_PREFIXES = {UNET: "unet.", VAE: "vae.", TE1: "text_encoder."}
_TO_DIFFUSERS = {UNET: unet.LDM_TO_DIFFUSERS, VAE: vae.LDM_TO_DIFFUSERS}
_TO_LDM = {UNET: unet.DIFFUSERS_TO_LDM, VAE: vae.DIFFUSERS_TO_LDM}


def ldm_to_diffusers(part: str, path: str) -> str | None:
    """The canonical module path of ldm module `path` of `part` (unet, te1, vae), or None if SD1 has no such layer."""
    if part == TE1:
        # Some checkpoints were written by a transformers without the text_model level.
        full = path if path.startswith("text_") else f"text_model.{path}"
        return full if text_encoder.is_text_encoder_path(full) else None
    return _TO_DIFFUSERS[part].get(path) if part in _TO_DIFFUSERS else None


def diffusers_to_ldm(part: str, path: str) -> str | None:
    """The inverse of `ldm_to_diffusers`."""
    if part == TE1:
        return path if text_encoder.is_text_encoder_path(path) else None
    return _TO_LDM[part].get(path) if part in _TO_LDM else None


def checkpoint_key(name: str) -> tuple[LayerKey, str] | None:
    """`(layer, parameter)` for a tensor name of a checkpoint, CompVis or diffusers-prefixed; None if it is neither.

    `checkpoint_key("model.diffusion_model.out.2.bias")` is `(LayerKey("unet", "conv_out"), "bias")`.
    """
    module, _, parameter = name.rpartition(".")
    for part, prefix in COMPVIS_PREFIXES.items():
        if module.startswith(prefix):
            path = ldm_to_diffusers(part, module[len(prefix) :])
            return (LayerKey(part, path), parameter) if path else None
    for part, prefix in DIFFUSERS_PREFIXES.items():
        if module.startswith(prefix) and diffusers_to_ldm(part, module[len(prefix) :]):
            return LayerKey(part, module[len(prefix) :]), parameter
    return None


def checkpoint_layer_map(names: Iterable[str]) -> dict[str, LayerKey]:
    """`{tensor name: layer}` for every weight of a checkpoint that belongs to a known layer of SD1."""
    found = {name: checkpoint_key(name) for name in names if name.endswith(".weight")}
    return {name: hit[0] for name, hit in found.items() if hit is not None}


def default_targets(part: str) -> tuple[str, ...]:
    """Canonical paths kohya trains by default: 192 for "unet", 72 for "te1"."""
    return unet.transformer_targets() if part == UNET else text_encoder.text_targets()
