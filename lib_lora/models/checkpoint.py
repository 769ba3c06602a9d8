"""Load a Stable Diffusion 1.x checkpoint file of any width into diffusers modules."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora.errors import BadFile
from lib_lora.files.checkpoint_convert import compvis_to_parts
from lib_lora.files.tensors import tensor_reader
from lib_lora.models.checkpoint_config import (
    TEXT_CONFIG_KEY,
    ModelConfig,
    read_yaml,
    require_sd1,
    text_config,
    unet_config,
    vae_config,
)
from lib_lora.models.diffusers_model import TEXT_PREFIX, DiffusersModel, text_root
from lib_lora.models.schedule import scaled_linear
from lib_lora.models.tokenizer import default_clip_folder, load_tokenizer

log = logging.getLogger(__name__)
# What torch's unpickler raises on damaged bytes: it takes them for instructions, and checks few of them.
UNPICKLING_ERRORS = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError, AttributeError),
    *(LookupError, AssertionError, struct.error, OverflowError),
)


def load_checkpoint(
    path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> DiffusersModel:
    """The model in a CompVis .safetensors or .ckpt file, in eval mode and frozen.

    A .yaml of the same name gives what shapes do not tell (heads, v-prediction, CLIP folder). Raises BadFile for a
    missing, damaged or incomplete file, WrongBaseModel for SD2 / SDXL, UnknownFormat for what is no checkpoint.
    """
    path = Path(path)
    if not os.path.isfile(path):  # unlike Path's, false for names too long
        raise BadFile(f"no checkpoint file {str(path)!r}; give the path of a Stable Diffusion 1.x checkpoint")
    state, metadata = read_state(path)
    require_sd1(state, path)
    settings = read_yaml(path)
    parts = compvis_to_parts(state)
    stated = metadata.get(TEXT_CONFIG_KEY)
    del state
    model = _build(path, parts, settings, stated)
    return model.to(device=device, dtype=dtype)


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a checkpoint file on the CPU, and its metadata ({} for .ckpt). Never runs code of the file."""
    if path.suffix.lower() == ".safetensors":
        with tensor_reader(path) as (header, read):
            return {name: read(name) for name in header.tensors}, dict(header.metadata)
    try:
        loaded = torch.load(str(path), map_location="cpu", weights_only=True)
    except UNPICKLING_ERRORS as error:
        raise BadFile(
            f"{path.name} cannot be read without running code from it; convert it to .safetensors "
            f"or download that form ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else {}
    named = loaded.items() if isinstance(loaded, Mapping) else ()
    return {name: value for name, value in named if isinstance(name, str) and isinstance(value, Tensor)}, {}


def identity_of(path: Path) -> str:
    """16 hex digits that change with the file's size, time or first mebibyte (names, shapes and some weights)."""
    about = path.stat()
    with path.open("rb") as file:
        head = file.read(1 << 20)
    return hashlib.sha256(head + f"|{about.st_size}|{about.st_mtime_ns}".encode()).hexdigest()[:16]


def _build(
    path: Path, parts: Mapping[str, Mapping[str, Tensor]], settings: ModelConfig, stated: str | None
) -> DiffusersModel:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    texts = text_config(parts["te1"], settings.clip_folder, stated)
    with torch.device("meta"):  # no memory, no random initialisation that the file overwrites anyway
        unet = UNet2DConditionModel(**unet_config(parts["unet"], settings.unet_heads))
        vae = AutoencoderKL(**vae_config(parts["vae"], settings.scale_factor))
        text: Any = CLIPTextModel(CLIPTextConfig(**texts))
    _fill(unet, parts["unet"], f"{path.name}: UNet")
    _fill(vae, parts["vae"], f"{path.name}: VAE")
    short = {name.removeprefix(TEXT_PREFIX): tensor for name, tensor in parts["te1"].items()}
    _fill(text_root(text), short, f"{path.name}: text encoder")
    for module in (unet, vae, text):
        module.eval().requires_grad_(False)
    folder = settings.clip_folder
    if folder is None or not (folder / "vocab.json").is_file():
        folder = default_clip_folder(texts)
    return DiffusersModel(
        name=path.stem,
        unet=unet,
        vae=vae,
        text_encoder=text,
        tokenizer=load_tokenizer(folder),
        identity=identity_of(path),
        prediction_type=settings.prediction_type,
        bars=scaled_linear(settings.linear_start, settings.linear_end),
    )


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Put `tensors` into a meta-device module. Raises BadFile naming what lacks or does not fit."""
    expected = module.state_dict()
    state: dict[str, Tensor] = {}
    wrong = []
    for name, tensor in tensors.items():
        if name not in expected:
            continue
        shape = expected[name].shape
        if tensor.numel() == shape.numel() and tensor.dim() != len(shape):
            tensor = tensor.reshape(shape)  # ldm keeps the VAE's attention as 1x1 convolutions
        if tensor.shape != shape:
            wrong.append(f"{name} is {tuple(tensor.shape)} where {tuple(shape)} was expected")
        state[name] = tensor.contiguous()
    parameters = {name for name, _ in module.named_parameters()}
    missing = sorted(parameters - state.keys())
    if missing or wrong:
        first = (wrong + [f"{name} is missing" for name in missing])[0]
        raise BadFile(
            f"{what}: {len(missing)} tensors missing, {len(wrong)} misshapen, first {first}; get a whole file"
        )
    unexpected = [name for name in tensors if name not in expected and not name.endswith("position_ids")]
    if unexpected:
        log.warning("%s: %d tensors not used, first %s", what, len(unexpected), unexpected[0])
    module.load_state_dict(state, strict=False, assign=True)
    _fill_buffers(module)


def _fill_buffers(module: nn.Module) -> None:
    """Give position numbers that were not in the file their values; no SD1 module has another buffer."""
    for child in module.modules():
        for name, buffer in list(child.named_buffers(recurse=False)):
            if name == "position_ids":
                setattr(child, name, torch.arange(buffer.shape[-1]).unsqueeze(0))
            elif buffer.is_meta:
                raise BadFile(f"the buffer {name} of {type(child).__name__} has no value; use the pinned versions")
