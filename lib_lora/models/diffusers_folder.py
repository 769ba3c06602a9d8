"""A diffusers folder (model_index.json and a folder for each network) as a base model. Nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_lora.errors import BadFile, UnknownFormat, WrongBaseModel
from lib_lora.files.tensors import read_header, tensor_reader
from lib_lora.keys import versions
from lib_lora.keys.checkpoint import VAE
from lib_lora.keys.layer_key import TE1, TE2, UNET
from lib_lora.models.checkpoint_config import EPSILON, V
from lib_lora.models.checkpoint_kind import WANTED
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.models.fill import Frame, frame_of, module_of
from lib_lora.models.identity import identity_of_all
from lib_lora.models.loading import Loading
from lib_lora.models.schedule import linear, scaled_linear, zero_terminal
from lib_lora.models.tokenizer import default_clip_folder, load_tokenizer

FOLDERS = {UNET: "unet", VAE: "vae", TE1: "text_encoder", TE2: "text_encoder_2"}
TOKENIZERS = {TE1: "tokenizer", TE2: "tokenizer_2"}
EMA_FOLDER = "unet_ema"
_STEMS = {UNET: "diffusion_pytorch_model", VAE: "diffusion_pytorch_model", TE1: "model", TE2: "model"}
_PICKLED = {"model": "pytorch_model"}
# Names that AutoencoderKL's attention had before diffusers 0.17, in which most folders were written.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_SCHEDULES = {"scaled_linear": scaled_linear, "linear": linear}


def load_folder(folder: Path, loading: Loading) -> tuple[DiffusersModel, str | None]:
    """The model, and what it predicts if the folder's scheduler tells. Errors: see `load_checkpoint`."""
    index = _json(folder / "model_index.json", folder)
    version = _kind(folder, index)
    parts = [UNET, VAE, TE1, *((TE2,) if version == versions.SDXL else ())]
    places = {part: folder / FOLDERS[part] for part in parts}
    if loading.use_ema:
        places[UNET] = folder / EMA_FOLDER
        if not places[UNET].is_dir():
            raise BadFile(f"{folder} has no EMA weights in {EMA_FOLDER}; load it without use_ema")
    modules: dict[str, Any] = {}
    half = loading.dtype not in (None, torch.float32, torch.float64)
    weights = {part: _weights(part, place, half) for part, place in places.items()}
    loading = loading.settled(_stored(weights[UNET]))
    for part, place in places.items():
        frame = frame_of(part, module_of(part, _config(place, folder)), f"{folder.name}/{place.name}")
        _fill(frame, weights[part], loading.dtype_of(part, version), loading.device)
        modules[part] = frame.close()
    bars, told = _schedule(folder)
    tokenizers = {part: load_tokenizer(_vocabulary(folder / TOKENIZERS[part])) for part in (TE1, TE2) if part in parts}
    model = DiffusersModel(
        name=folder.name,
        unet=modules[UNET],
        vae=modules[VAE],
        text_encoder=modules[TE1],
        tokenizer=tokenizers[TE1],
        identity=identity_of_all(path for paths in weights.values() for path in paths),
        version=version,
        bars=bars,
        text_encoder_2=modules.get(TE2),
        tokenizer_2=tokenizers.get(TE2),
    )
    return model, told


def _json(path: Path, folder: Path) -> dict[str, Any]:
    """A JSON object. Raises UnknownFormat where there is no such file, BadFile where it is something else."""
    if not path.is_file():
        raise UnknownFormat(
            f"{folder} has no {path.relative_to(folder)}, so it is no diffusers folder; {WANTED}, "
            "as a file or as a folder with model_index.json"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadFile(f"{path} cannot be read as JSON ({error}); get the folder again") from error
    if not isinstance(content, dict):
        raise BadFile(f"{path} is no JSON object; get the folder again")
    return content


def _config(place: Path, folder: Path) -> dict[str, Any]:
    return _json(place / "config.json", folder)


def _kind(folder: Path, index: Mapping[str, Any]) -> str:
    """The version. Raises WrongBaseModel for pipelines of other models, with what they are."""
    has = {part for part, name in FOLDERS.items() if (index.get(name) or [None])[0] is not None}
    pipeline = str(index.get("_class_name"))
    unet = _config(folder / FOLDERS[UNET], folder) if UNET in has else {}
    channels = unet.get("in_channels")
    if UNET not in has or TE1 not in has or channels != 4 or "Stable" not in pipeline:
        what = f"its UNet takes {channels} channels" if channels not in (None, 4) else f"its networks are {sorted(has)}"
        raise WrongBaseModel(f"{folder} is a {pipeline} ({what}); {WANTED}")
    if TE2 in has:
        return versions.SDXL
    return versions.SD2 if unet.get("use_linear_projection") else versions.SD1


def _weights(part: str, place: Path, half: bool) -> list[Path]:
    """The files with a part's weights: safetensors before pickles; the fp16 variant first if `half`, else last.

    Raises BadFile if there is none.
    """
    stem = _STEMS[part]
    for suffix, name in ((".safetensors", stem), (".bin", _PICKLED.get(stem, stem))):
        for variant in (".fp16", "") if half else ("", ".fp16"):
            single = place / f"{name}{variant}{suffix}"
            if single.is_file():
                return [single]
            listed = place / f"{name}{suffix}.index{variant}.json"
            if listed.is_file():
                return _listed(listed)
    raise BadFile(f"{place} has no {stem}.safetensors, nor its fp16 variant, nor a .bin; get the folder again")


def _listed(index: Path) -> list[Path]:
    """The files of a network that is spread over several."""
    shards = _json(index, index.parent).get("weight_map")
    names = sorted({str(name) for name in shards.values()}) if isinstance(shards, Mapping) else []
    paths = [index.parent / Path(name).name for name in names]  # never outside the folder
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise BadFile(f"{index} lists {', '.join(missing) or 'no files'}, which are not there; get the folder again")
    return paths


def _fill(frame: Frame, files: list[Path], dtype: torch.dtype, device: torch.device) -> None:
    for path in files:
        with tensor_reader(path) as (header, read):
            for name in header.tensors:
                frame.take(_modern(name), read(name), dtype, device)


def _stored(files: list[Path]) -> list[str]:
    """The file dtype names of all tensors."""
    return [info.dtype for path in files for info in read_header(path).tensors.values()]


def _modern(name: str) -> str:
    head, dot, parameter = name.rpartition(".")
    path, _, last = head.rpartition(".")
    if last in _OLD_NAMES and ".attentions." in f".{path}.":
        return f"{path}.{_OLD_NAMES[last]}{dot}{parameter}"
    return name


def _vocabulary(folder: Path) -> Path:
    """The folder's own tokenizer files, or CLIP's where it has none (some keep tokenizer.json alone)."""
    own = all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    return folder if own else default_clip_folder()


def _schedule(folder: Path) -> tuple[Tensor, str | None]:
    """alpha_bar (1000,), and what the model predicts; latent diffusion's where the folder has no scheduler."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return scaled_linear(), None
    config = _json(path, folder)
    kind, predicted = config.get("beta_schedule", "linear"), config.get("prediction_type")
    if kind not in _SCHEDULES or config.get("trained_betas") or predicted not in (None, EPSILON, V):
        raise WrongBaseModel(
            f"{path} has the schedule {kind!r} and prediction type {predicted!r}, which nothing here knows; {WANTED}"
        )
    try:
        start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    except (TypeError, ValueError) as error:
        raise BadFile(f"{path}: {error}; get the folder again") from error
    bars = _SCHEDULES[kind](start, end)
    return zero_terminal(bars) if config.get("rescale_betas_zero_snr") else bars, predicted
