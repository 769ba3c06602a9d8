"""Names inside a whole checkpoint <-> canonical names, and the layers a network is trained on by default."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lib_lora.keys import open_clip, text_encoder, unet, vae
from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey

VAE = "vae"  # not a part a network can have, but a part of a checkpoint
COMPVIS_PREFIXES = {UNET: "model.diffusion_model.", VAE: "first_stage_model.", TE1: "cond_stage_model.transformer."}
DIFFUSERS_PREFIXES = {UNET: "unet.", VAE: "vae.", TE1: "text_encoder.", TE2: "text_encoder_2."}
# SDXL's first encoder is transformers' as well; OpenCLIP's are SD2's and SDXL's second.
SDXL_CLIP_PREFIX = "conditioner.embedders.0.transformer."
OPEN_CLIP_PREFIXES = {"cond_stage_model.model.": TE1, "conditioner.embedders.1.model.": TE2}
_PARAMETERS = ("weight", "bias")


@dataclass(frozen=True)
class Piece:
    """A layer's parameter inside a checkpoint's tensor: all of it, or the `rows` (first, end) of a fused one.

    `parameter` is "weight" or "bias". A `transposed` weight is stored as (in, out).
    """

    key: LayerKey
    parameter: str
    rows: tuple[int, int] | None = None
    transposed: bool = False


def ldm_to_diffusers(part: str, path: str) -> str | None:
    """The canonical module path of ldm / sgm module `path` of `part` (unet, te1, vae), or None if none has such a one.

    te1 is transformers' CLIP; for OpenCLIP's towers see `checkpoint_pieces`.
    """
    if part == TE1:
        # Some checkpoints were written by a transformers without the text_model level.
        full = path if path.startswith("text_") else f"text_model.{path}"
        return full if text_encoder.is_text_encoder_path(full) else None
    if part == UNET:
        return unet.LDM_TO_DIFFUSERS.get(path)
    return vae.LDM_TO_DIFFUSERS.get(path) if part == VAE else None


def diffusers_to_ldm(part: str, path: str, version: str = "sd1") -> str | None:
    """The inverse of `ldm_to_diffusers` for a base version."""
    if part == TE1:
        return path if text_encoder.is_text_encoder_path(path) else None
    if part == UNET:
        return unet.NATIVE[version].get(path)
    return vae.DIFFUSERS_TO_LDM.get(path) if part == VAE else None


def checkpoint_key(name: str) -> tuple[LayerKey, str] | None:
    """`(layer, parameter)` for a tensor name of an SD1 checkpoint, CompVis or diffusers-prefixed; None if neither.

    `checkpoint_key("model.diffusion_model.out.2.bias")` is `(LayerKey("unet", "conv_out"), "bias")`.
    """
    module, _, parameter = name.rpartition(".")
    for part, prefix in COMPVIS_PREFIXES.items():
        if module.startswith(prefix):
            path = ldm_to_diffusers(part, module[len(prefix) :])
            return (LayerKey(part, path), parameter) if path else None
    for part, prefix in DIFFUSERS_PREFIXES.items():
        if part != TE2 and module.startswith(prefix) and diffusers_to_ldm(part, module[len(prefix) :]):
            return LayerKey(part, module[len(prefix) :]), parameter
    return None


def checkpoint_layer_map(names: Iterable[str]) -> dict[str, LayerKey]:
    """`{tensor name: layer}` for every weight of a checkpoint that belongs to a known layer of SD1."""
    found = {name: checkpoint_key(name) for name in names if name.endswith(".weight")}
    return {name: hit[0] for name, hit in found.items() if hit is not None}


def checkpoint_pieces(name: str, shape: tuple[int, ...]) -> tuple[Piece, ...]:
    """The layers of UNet and text encoders that a tensor of an SD1, SD2 or SDXL checkpoint holds, in CompVis' or sgm's
    naming or with diffusers' prefixes; () if it holds none. A fused projection holds three.
    """
    for prefix, part in OPEN_CLIP_PREFIXES.items():
        if name.startswith(prefix):
            return _open_clip_pieces(part, name[len(prefix) :], shape)
    module, _, parameter = name.rpartition(".")
    if parameter not in _PARAMETERS:
        return ()
    if module.startswith(SDXL_CLIP_PREFIX):
        module = COMPVIS_PREFIXES[TE1] + module[len(SDXL_CLIP_PREFIX) :]
    for part in (UNET, TE1):
        if module.startswith(COMPVIS_PREFIXES[part]):
            path = ldm_to_diffusers(part, module[len(COMPVIS_PREFIXES[part]) :])
            return (Piece(LayerKey(part, path), parameter),) if path else ()
    for part, prefix in DIFFUSERS_PREFIXES.items():
        if part != VAE and module.startswith(prefix) and _known(part, module[len(prefix) :]):
            return (Piece(LayerKey(part, module[len(prefix) :]), parameter),)
    return ()


def default_targets(part: str, version: str = "sd1") -> tuple[str, ...]:
    """Canonical paths kohya trains by default: SD1 192 for "unet" and 72 for "te1", SD2 192 and 138, SDXL 722, 72 and
    192 for "te2"."""
    if part == UNET:
        return unet.transformer_targets(version)
    return text_encoder.text_targets(text_encoder.LAYERS[version][part])


def _known(part: str, path: str) -> bool:
    return path in unet.ALL_PATHS if part == UNET else text_encoder.is_text_encoder_path(path)


def _open_clip_pieces(part: str, name: str, shape: tuple[int, ...]) -> tuple[Piece, ...]:
    """`name` is a tensor of the open_clip model itself, e.g. `transformer.resblocks.0.attn.in_proj_weight`."""
    block = name.removeprefix("transformer.resblocks.").partition(".")[0]
    number = int(block) if block.isdecimal() and block.isascii() and len(block) < 4 else 0
    width = shape[0] // 3 if name.endswith(("in_proj_weight", "in_proj_bias")) and shape else 0
    found = []
    for path, place in open_clip.openclip_places(number + 1, width).items():
        stem = f"{place.module}." if place.module else ""
        for parameter, own in (("weight", place.weight), ("bias", place.bias)):
            if own is not None and f"{stem}{own}" == name:
                found.append(Piece(LayerKey(part, path), parameter, place.rows, place.transposed))
    return tuple(found)
