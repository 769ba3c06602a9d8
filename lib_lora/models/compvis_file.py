"""A checkpoint in one file, in CompVis' or sgm's naming, as diffusers' and transformers' modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib_lora.errors import BadFile
from lib_lora.files.checkpoint_convert import Share, require_parts, shares
from lib_lora.files.tensors import Read, tensor_reader
from lib_lora.keys import versions
from lib_lora.keys.checkpoint import VAE
from lib_lora.keys.layer_key import TE1, TE2, UNET
from lib_lora.models.checkpoint_config import ModelConfig, settings_of
from lib_lora.models.checkpoint_kind import UNET_PREFIX, kind_of
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.models.fill import Frame, frame_of, module_of
from lib_lora.models.identity import identity_of
from lib_lora.models.loading import Loading
from lib_lora.models.part_config import blocks_run, clip_folder_fits, sizes_width, text_config, unet_config, vae_config
from lib_lora.models.schedule import scaled_linear, zero_terminal
from lib_lora.models.tokenizer import default_clip_folder, load_tokenizer

EMA_PREFIX = "model_ema."
_LAYERS = "text_model.encoder.layers."
Shape = tuple[int, ...]


@dataclass
class _Contents:
    """What a file holds: the shapes of each part by diffusers' names, and for each tensor of the file its shares."""

    version: str
    shapes: dict[str, dict[str, Shape]] = field(default_factory=dict)
    sources: dict[str, list[Share]] = field(default_factory=dict)


def load_file(path: Path, loading: Loading) -> tuple[DiffusersModel, str | None]:
    """The model, and what it predicts if the file or the .yaml beside it tells. Errors: see `load_checkpoint`."""
    with tensor_reader(path) as (header, read):
        shapes = header.shapes()
        version = kind_of(shapes, path.name)
        settings = settings_of(path, header.metadata, shapes)
        contents = _contents(shapes, version)
        configs = _configs(contents, settings)
        frames = {part: frame_of(part, module_of(part, config), path.name) for part, config in configs.items()}
        loading = loading.settled(info.dtype for name, info in header.tensors.items() if name.startswith(UNET_PREFIX))
        averaged = _averaged(contents, shapes, path.name) if loading.use_ema else {}
        _fill(frames, contents, lambda name: read(averaged.get(name, name)), loading)
    modules = {part: frame.close() for part, frame in frames.items()}
    tokenizers = {part: load_tokenizer(_folder(part, configs[part], settings)) for part in (TE1, TE2) if part in frames}
    bars = scaled_linear(settings.linear_start, settings.linear_end)
    model = DiffusersModel(
        name=path.stem,
        unet=modules[UNET],
        vae=modules[VAE],
        text_encoder=modules[TE1],
        tokenizer=tokenizers[TE1],
        identity=identity_of(path) + ("-ema" if loading.use_ema else ""),
        version=version,
        bars=zero_terminal(bars) if settings.zero_terminal else bars,
        text_encoder_2=modules.get(TE2),
        tokenizer_2=tokenizers.get(TE2),
    )
    return model, settings.prediction_type


def _contents(shapes: Mapping[str, Shape], version: str) -> _Contents:
    """Raises BadFile where a whole part is missing."""
    contents = _Contents(version)
    for name, shape in shapes.items():
        for share in shares(name, shape):
            contents.sources.setdefault(name, []).append(share)
            contents.shapes.setdefault(share.part, {})[share.name] = share.shape(shape)
    require_parts(contents.shapes, len(shapes), sdxl=version == versions.SDXL)
    return contents


def _configs(contents: _Contents, settings: ModelConfig) -> dict[str, dict[str, Any]]:
    """The arguments of each part's class."""
    version, shapes = contents.version, contents.shapes
    texts = {part: text_config(part, shapes[part], version, settings) for part in (TE1, TE2) if part in shapes}
    unet = unet_config(shapes[UNET], version, settings)
    if version == versions.SDXL:
        pooled = texts[TE2]["projection_dim"]
        unet["addition_time_embed_dim"] = sizes_width(unet["projection_class_embeddings_input_dim"], pooled)
    return {UNET: unet, VAE: vae_config(shapes[VAE], version, settings), **texts}


def _fill(frames: Mapping[str, Frame], contents: _Contents, read: Read, loading: Loading) -> None:
    """Every tensor of the file that a part needs, read once and one at a time."""
    unread = _blocks_not_run(contents)
    for name, own in contents.sources.items():
        wanted = [share for share in own if share.part in frames and not share.name.startswith(unread)]
        if not wanted:
            continue
        whole = read(name)
        for share in wanted:
            dtype = loading.dtype_of(share.part, contents.version)
            frames[share.part].take(share.name, share.of(whole), dtype, loading.device)


def _blocks_not_run(contents: _Contents) -> tuple[str, ...]:
    """Beginnings of the names of SD2's last text block, and its text projection, which only SDXL uses."""
    found = []
    for part in (TE1, TE2):
        names = contents.shapes.get(part, {})
        blocks = {int(name.split(".")[3]) for name in names if name.startswith(_LAYERS)}
        found += [f"{_LAYERS}{i}." for i in sorted(blocks) if i >= blocks_run(len(blocks), part, contents.version)]
    return tuple(found) if contents.version != versions.SD2 else (*found, "text_projection.")


def ema_name(name: str) -> str:
    """The name of a tensor's average. Latent diffusion writes these without dots."""
    return EMA_PREFIX + name.removeprefix("model.").replace(".", "")


def _averaged(contents: _Contents, shapes: Mapping[str, Shape], file: str) -> dict[str, str]:
    """{tensor name of the UNet: name of its average}.

    Raises BadFile where not every weight has one.
    """
    own = [name for name in contents.sources if name.startswith(UNET_PREFIX)]
    names = {name: ema_name(name) for name in own}
    missing = [name for name, ema in names.items() if shapes.get(ema) != shapes[name]]
    if missing:
        raise BadFile(
            f"{file} has EMA weights for {len(own) - len(missing)} of the UNet's {len(own)} tensors "
            f"(none for {missing[0]!r}); load it without use_ema, or get the file with EMA weights"
        )
    return names


def _folder(part: str, config: Mapping[str, Any], settings: ModelConfig) -> Path:
    """Where the tokenizer's vocabulary is."""
    folder = settings.clip_folder if part == TE1 else None
    return folder if folder is not None and clip_folder_fits(folder) else default_clip_folder(config)
