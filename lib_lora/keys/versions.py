"""For which base model a network's names and shapes speak. Never trusts metadata."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from lib_lora.keys import shapes, text_encoder, unet
from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey
from lib_lora.keys.shapes import Shape

SD1, SD2, SDXL, UNKNOWN = "sd1", "sd2", "sdxl", "unknown"
FLUX, SD3, OTHER = "flux", "sd3", "other"
KNOWN = (SD1, SD2, SDXL)  # the likeliest first
_TITLES = {SD1: "SD 1.x", SD2: "SD 2.x", SDXL: "SDXL", UNKNOWN: "an unknown model"}
_ROOT = (
    r"^(?:base_model\.model\.|transformer\.|lora_transformer_|lora_unet_|lycoris_|diffusion_model\.|unet\.|model\.)*"
)
# (version, title, what only names of its layers contain); the first that is found counts.
_FOREIGN = tuple(
    (version, title, re.compile(pattern))
    for version, title, pattern in (
        ("cascade", "Stable Cascade", r"^lora_prior_|_blocks[._]\d+[._]\d+[._]attention[._]attn"),
        ("hidream", "HiDream", r"double_stream_blocks|single_stream_blocks"),
        ("auraflow", "AuraFlow", r"joint_transformer_blocks"),
        ("chroma", "Chroma", r"distilled_guidance_layer"),
        ("hunyuan-video", "Hunyuan Video", r"individual_token_refiner|double_blocks\.\d+\.(?:img|txt)_attn_qkv"),
        (FLUX, "Flux", r"double_blocks[._]\d|single_blocks[._]\d|single_transformer_blocks[._]\d"),
        (
            "qwen-image",
            "Qwen-Image",  # which has 60 blocks; no other model with these names has more than 38
            r"transformer_blocks[._]\d+[._](?:img|txt)_(?:mlp|mod)"
            rf"|{_ROOT}transformer_blocks[._](?:3[89]|[45]\d)[._]attn[._]",
        ),
        (SD3, "SD 3", rf"joint_blocks[._]\d|{_ROOT}transformer_blocks[._]\d+[._]attn[._]"),
        (
            "z-image",
            "Z-Image or Lumina",
            rf"(?:noise|context)_refiner|{_ROOT}layers[._]\d+[._](?:attention|feed_forward)",
        ),
        ("anima", "Anima or Cosmos", rf"{_ROOT}blocks[._]\d+[._](?:self|cross)_attn[._](?:[qkv]|output)_proj"),
        (
            "wan",
            "Wan",
            rf"{_ROOT}blocks[._]\d+[._](?:(?:self|cross)_attn[._](?:[qkvo]|[kv]_img)(?:[._]|$)|ffn[._])",
        ),
        ("hunyuan-dit", "Wan or Hunyuan-DiT", rf"{_ROOT}blocks[._]\d+[._]attn[12][._]"),
        ("pixart", "PixArt, Sana or LTX", rf"{_ROOT}transformer_blocks[._]\d+[._]attn[12][._]|adaln_single"),
        ("animatediff", "AnimateDiff (motion)", r"motion_modules|temporal_transformer"),
        ("sd3-text", "SD 3, Flux or another model with a T5 text encoder", r"^(?:lora_te3_|text_encoder_3\.|t5xxl)"),
        (OTHER, "a model of another kind", rf"{_ROOT}(?:transformer_)?(?:blocks|layers)[._]\d|^lora_transformer_"),
    )
)
# Names of the first stand in the files of the others too, beside names of their own.
_SHARED = {SD3: {FLUX, "qwen-image"}, "hunyuan-dit": {"wan"}}
_TITLES |= {version: title for version, title, _ in _FOREIGN} | {"sdxl-refiner": "the SDXL refiner"}
_ALL_PATHS = {version: frozenset(unet.unet_paths(version)) for version in KNOWN}
_CROSS_WIDTHS = {shapes.CLIP_L: {SD1}, shapes.CLIP_H: {SD2}, 2048: {SDXL}}
REFINER, _REFINER_WIDTH = "sdxl-refiner", 1280
_CLIP_WIDTHS = {shapes.CLIP_L: {SD1, SDXL}, shapes.CLIP_H: {SD2}}
Layers = Mapping[LayerKey, Mapping[str, Shape]]


def foreign(names: Iterable[str]) -> str | None:
    """The other model most of these names speak of, or None if none does.

    Ask with the names that no layer of SD1, SD2 or SDXL was found for.
    """
    told = Counter(version for name in names if (version := _foreign(name)) is not None)
    for shared, others in _SHARED.items():
        if told.keys() & others:
            del told[shared]
    return max(told, key=lambda version: told[version]) if told else None


def candidates(layers: Layers, unknown: Iterable[str] = ()) -> tuple[str, ...]:
    """The versions a network can be for, the likeliest first: one of KNOWN or several, or one foreign, or none.

    `layers` are the shapes of its tensors by kohya's names, `unknown` the names nobody understood. Evidence counts in
    this order: names of another model, the width of text states in the UNet, layers only one version has, the
    encoders' widths and depths. A network that shows none of it, such as one of self-attentions only, fits SD1 and SD2.
    """
    unknown = tuple(unknown)
    other = foreign(unknown)
    in_unet = sum(max(len(tensors), 1) for key, tensors in layers.items() if key.part == UNET)
    if other is not None and sum(_foreign(name) is not None for name in unknown) > in_unet:
        return (other,)
    if not layers:
        return ()
    possible = set(KNOWN)
    for evidence in _evidence(layers):
        possible = possible & evidence or possible
        if evidence == {REFINER}:
            return (REFINER,)
    return tuple(version for version in KNOWN if version in possible)


def title(version: str) -> str:
    """The version as people write it."""
    return _TITLES.get(version, version)


def _foreign(name: str) -> str | None:
    return next((version for version, _, pattern in _FOREIGN if pattern.search(name)), None)


def _evidence(layers: Layers) -> Iterable[set[str]]:
    """The versions each fact leaves possible, the surest fact first."""
    cross = _common(shapes.text_width(k, t) for k, t in layers.items() if k.part == UNET)
    if cross == _REFINER_WIDTH:
        yield {REFINER}
    yield _CROSS_WIDTHS.get(cross or 0, set(KNOWN))
    votes = Counter(_having(key.path) for key in layers if key.part == UNET)
    del votes[frozenset(KNOWN)]  # of layers that all have
    yield from (set(version) for version, _ in votes.most_common(1))
    if any(key.part == TE2 for key in layers):
        yield {SDXL}
    clip = _common(shapes.text_width(k, t) for k, t in layers.items() if k.part == TE1)
    yield _CLIP_WIDTHS.get(clip or 0, set(KNOWN))
    if any(key.part == TE1 and _block(key.path) >= text_encoder.SD1_LAYERS for key in layers):
        yield {SD2}
    yield from (_projection(tensors) for key, tensors in layers.items() if key.path.endswith(".proj_in"))


def _common(widths: Iterable[int | None]) -> int | None:
    """The most frequent width: one odd layer must not decide."""
    counted = Counter(width for width in widths if width is not None)
    return counted.most_common(1)[0][0] if counted else None


def _having(path: str) -> frozenset[str]:
    return frozenset(version for version in KNOWN if path in _ALL_PATHS[version])


def _block(path: str) -> int:
    number = path.removeprefix("text_model.encoder.layers.").partition(".")[0]
    return int(number) if number.isdecimal() else 0


def _projection(tensors: Mapping[str, Shape]) -> set[str]:
    """SD1's transformers begin with a 1x1 convolution, the others with a Linear layer."""
    axes = {len(tensors[name]) for name in ("lora_down.weight", "diff", "set_weight") if name in tensors}
    return {SD1} if axes == {4} else {SD2, SDXL} if axes == {2} else set(KNOWN)
