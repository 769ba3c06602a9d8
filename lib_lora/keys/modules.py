"""The layer a file's module name means, whatever tool wrote it.

Tools differ in three things: what stands before the path (`lora_unet_`, `unet.`, `diffusion_model.`, nothing), whether
its dots became underscores, and whether it follows diffusers / transformers or ldm / sgm / OpenCLIP. Written with
underscores throughout, no two layers share a name, so one table per part answers for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lib_lora.keys import open_clip, text_encoder, unet
from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey

KOHYA, BARE = "kohya", "bare"  # how a prefix is meant: kohya's and LyCORIS' own, or a module path of a model
_PREFIXES = {
    # kohya, LyCORIS and its wrapper, kohya's OFT
    KOHYA: {
        UNET: ("lora_unet", "lycoris_unet", "oft_unet", "lycoris"),
        TE1: ("lora_te", "lora_te1", "lycoris_te", "lycoris_te1", "oft_te", "oft_te1", "lycoris"),
        TE2: ("lora_te2", "lycoris_te2", "oft_te2"),
    },
    # diffusers and PEFT; ComfyUI; OneTrainer's OMI (clip_l); the webui's own module names; checkpoints
    BARE: {
        UNET: ("unet", "diffusion_model", "model_diffusion_model", ""),
        TE1: (
            *("text_encoder", "text_encoder_1", "transformer", "model", "0_transformer", "cond_stage_model"),
            *("text_encoders_clip_l_transformer", "text_encoders_clip_h_transformer", "text_encoders_clip_l"),
            *("clip_l_transformer", "clip_h_transformer", "clip_l", "clip_h", "conditioner_embedders_0_transformer"),
            *("cond_stage_model_transformer", "cond_stage_model_model", ""),
        ),
        TE2: (
            *("text_encoder_2", "text_encoders_clip_g_transformer", "text_encoders_clip_g"),
            *("clip_g_transformer", "clip_g", "1_model", "conditioner_embedders_1_model"),
        ),
    },
}
_NUMBER = re.compile(r"(?<=layers_|blocks_)(?:0|[1-9][0-9]{0,2})(?=_)")
_TEXT_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Module:
    """A module name of a file, understood. `prefix` is what stood before the path, with underscores.

    `style` is KOHYA or BARE. Two spellings of one layer have different `spelling`s.
    """

    key: LayerKey
    prefix: str
    style: str
    spelling: str


def find(name: str) -> Module | None:
    """The module called `name` (a tensor's name without the tensor), or None if no SD1, SD2 or SDXL has such a layer.

    `find("lora_unet_input_blocks_0_0").key` is `LayerKey("unet", "conv_in")`.
    """
    flat = name.replace(".", "_")
    for prefix, style, part in _ORDERED:
        if flat.startswith(prefix):
            rest = flat[len(prefix) :]
            path = _UNET.get(rest) if part == UNET else _text_path(rest)
            if path is not None:
                return Module(LayerKey(part, path), prefix.rstrip("_"), style, flat)
    return None


def has_kohya_prefix(name: str) -> bool:
    """Whether `name` starts as a name of kohya's or LyCORIS' files does, known layer or not."""
    return name.startswith(_KOHYA_STARTS)


def _ordered() -> Iterator[tuple[str, str, str]]:
    """(prefix, style, part), the longest first, so that `text_encoder_2_` is tried before `text_encoder_`."""
    for style, parts in _PREFIXES.items():
        for part, prefixes in parts.items():
            for prefix in prefixes:
                yield (f"{prefix}_" if prefix else ""), style, part


def _unet_names() -> Iterator[tuple[str, str]]:
    for path in dict.fromkeys(path for version in unet.LAYOUTS for path in unet.unet_paths(version)):
        yield path, path
        if path.endswith(".to_out.0"):
            yield path.removesuffix(".0"), path  # attention processors count no Sequential
    yield from unet.LDM_TO_DIFFUSERS.items()


def _text_names() -> Iterator[tuple[str, str]]:
    """Names of an encoder of one block; the number is put in by `_text_path`."""
    for path in text_encoder.text_encoder_paths(1, projection=True):
        yield path, path
        yield path.removeprefix("text_model."), path  # transformers 5 has no such level
        for theirs, ours in _TEXT_PROJECTIONS.items():  # diffusers' first files gave CLIP the UNet's names
            if path.endswith(f"self_attn.{ours}"):
                yield path.replace(ours, theirs), path
    for path, place in open_clip.openclip_places(1, 1).items():
        if place.rows is not None:
            yield f"{place.module}.{path.rpartition('.')[2]}", path  # as the webui names the thirds of in_proj
        else:
            yield (place.module or place.weight), path


def _text_path(flat: str) -> str | None:
    number = _NUMBER.search(flat)
    if number is None:
        path = _TEXT.get(flat)
        return path if path is not None and ".layers." not in path else None
    path = _TEXT.get(f"{flat[: number.start()]}0{flat[number.end() :]}")
    return path.replace("layers.0.", f"layers.{number.group()}.") if path else None


_ORDERED = tuple(sorted(_ordered(), key=lambda row: -len(row[0])))
_KOHYA_STARTS = tuple(prefix for prefix, style, _ in _ORDERED if style == KOHYA)
_UNET = {name.replace(".", "_"): path for name, path in _unet_names()}
_TEXT = {name.replace(".", "_"): path for name, path in _text_names()}
