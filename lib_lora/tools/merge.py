"""Networks merged into a checkpoint file for good: on state dicts alone, one tensor in memory at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lib_lora.errors import BadConfig, ShapeMismatch, WrongBaseModel
from lib_lora.files.codec import base_version, read_network
from lib_lora.files.tensors import Header, TensorInfo, file_dtype, tensor_reader, torch_dtype, write_stream
from lib_lora.keys.checkpoint import checkpoint_layer_map
from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.keys.versions import SD1, SDXL, title
from lib_lora.networks.base import Layer
from lib_lora.networks.network import Network

_MODEL_PREFIXES = ("model.", "model_ema.", "first_stage_model.", "cond_stage_model.", "unet.", "vae.", "text_encoder.")
_STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")


@dataclass(frozen=True)
class NetworkUse:
    """A network file and its strengths."""

    path: Path
    te: float = 1.0
    unet: float = 1.0


@dataclass(frozen=True)
class MergeJob:
    """What to merge into what. `dtype` None keeps each tensor's own."""

    checkpoint: Path
    networks: Sequence[NetworkUse]
    out: Path
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class NetworkReport:
    """How one network fared: layers merged, layers the checkpoint lacks, layers of the wrong shape."""

    path: Path
    matched: int
    unmatched: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass
class _Loaded:
    use: NetworkUse
    network: Network
    matched: int = 0
    mismatched: list[str] = field(default_factory=list)


def parse_use(text: str) -> NetworkUse:
    """`NETWORK[:STRENGTH[:UNET]]` as on the command line; a drive letter (`C:\\...`) is part of the path."""
    path = text
    numbers: list[float] = []
    while len(numbers) < 2 and not os.path.isfile(path):
        head, colon, tail = path.rpartition(":")
        try:
            number = float(tail)
        except ValueError:
            break
        if not colon or not head:
            break
        if not math.isfinite(number):
            raise BadConfig(f"strength {tail!r} in {text!r} is not a usable number; write e.g. {head}:0.8")
        path, numbers = head, [number, *numbers]
    te = numbers[0] if numbers else 1.0
    return NetworkUse(Path(path), te, numbers[1] if len(numbers) > 1 else te)


def merge(job: MergeJob) -> list[NetworkReport]:
    """Write `job.out`: each weight is its pristine value plus the sum of strength x delta, in float32, rounded once.

    Raises BadConfig (the output is an input), BadFile, UnknownFormat, WrongBaseModel (a network none of whose
    layers fit).
    """
    _refuse_input_as_output(job)
    loaded = [_Loaded(use, read_network(use.path)) for use in job.networks]
    with tensor_reader(job.checkpoint) as (header, read):
        layer_of = checkpoint_layer_map(header.tensors)
        _check_versions(job, header, loaded, layer_of)
        infos = {name: _info(name, info, job.dtype) for name, info in header.tensors.items()}

        def produce(name: str) -> Tensor:
            dtype = torch_dtype(infos[name].dtype)
            tensor = read(name)
            merged = _merged(tensor, layer_of[name], loaded) if name in layer_of else tensor
            _refuse_overflow(name, merged, narrow := merged.to(dtype))
            return narrow

        write_stream(job.out, infos, produce, _metadata(header, loaded))
    present = set(layer_of.values())
    return [_report(item, present) for item in loaded]


def _merged(weight: Tensor, key: LayerKey, loaded: Sequence[_Loaded]) -> Tensor:
    """`weight` plus every network's change of it, in float32 or wider; `weight` itself if none touches it."""
    total: Tensor | None = None
    # torch promotes no 8-bit floats, so the wide dtype is named.
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    pristine = weight.to(wide) if weight.is_floating_point() else weight
    for item in loaded:
        layer = item.network.layers.get(key)
        if layer is None:
            continue
        strength = item.use.unet if key.part == UNET else item.use.te
        try:
            with torch.no_grad():
                change = layer.delta(pristine)
        except ShapeMismatch as error:
            item.mismatched.append(f"{key}: {error}")
            continue
        item.matched += 1
        total = (pristine if total is None else total) + strength * change
    return weight if total is None else total


def _refuse_overflow(name: str, wide: Tensor, narrow: Tensor) -> None:
    """Raises BadConfig if rounding made a finite number infinite."""
    if wide.dtype == narrow.dtype or narrow.element_size() == 1 or not narrow.is_floating_point():
        return
    if bool((~torch.isfinite(narrow) & torch.isfinite(wide)).any()):
        raise BadConfig(
            f"{name} has numbers up to {float(wide.abs().max()):.3g} after merging, too large for {narrow.dtype}; "
            "choose --dtype fp32 or bf16, or lower strengths"
        )


def _info(name: str, info: TensorInfo, dtype: torch.dtype | None) -> TensorInfo:
    """The header entry of the output. Noise schedules and the like keep their precision."""
    floating = info.dtype.startswith(("F", "BF"))
    if dtype is None or not floating or not name.startswith(_MODEL_PREFIXES):
        return info
    return TensorInfo(file_dtype(dtype), info.shape)


def _refuse_input_as_output(job: MergeJob) -> None:
    target = os.path.realpath(job.out)
    for source in (job.checkpoint, *(use.path for use in job.networks)):
        # samefile too: a file system may not tell case apart.
        same = os.path.exists(source) and os.path.exists(target) and os.path.samefile(source, target)
        if same or os.path.realpath(source) == target:
            raise BadConfig(f"the output {job.out} is one of the inputs; choose another name with -o")


def _check_versions(job: MergeJob, header: Header, loaded: Sequence[_Loaded], layer_of: Mapping[str, LayerKey]) -> None:
    """Refuse before anything is written what cannot fit."""
    if any(name.startswith("conditioner.") for name in header.tensors):
        raise WrongBaseModel(f"{job.checkpoint} is an {title(SDXL)} checkpoint; choose one of {title(SD1)}")
    if not layer_of:
        raise WrongBaseModel(f"{job.checkpoint} has no layer of a Stable Diffusion model; choose a full checkpoint")
    shape_of = {key: header.tensors[name].shape for name, key in layer_of.items()}
    for item in loaded:
        if not any(_fits(layer, shape_of.get(key)) for key, layer in item.network.layers.items()):
            made_for = title(base_version(item.network))
            raise WrongBaseModel(
                f"no layer of {item.use.path} fits {job.checkpoint}: it was made for {made_for}, or for another size "
                "of model; choose a network made for this checkpoint"
            )


def _fits(layer: Layer, shape: tuple[int, ...] | None) -> bool:
    if shape is None:
        return False
    try:
        with torch.no_grad():
            layer.delta(torch.zeros(shape))
    except ShapeMismatch:
        return False
    return True


def _metadata(header: Header, loaded: Sequence[_Loaded]) -> dict[str, str]:
    """The checkpoint's metadata, without hashes that no longer hold, and what was merged."""
    kept = {name: value for name, value in header.metadata.items() if name not in _STALE}
    merged = [{"name": i.use.path.stem, "te": i.use.te, "unet": i.use.unet} for i in loaded]
    return {**kept, "lorakit_merged": json.dumps(merged, ensure_ascii=False)}


def _report(item: _Loaded, present: set[LayerKey]) -> NetworkReport:
    unmatched = tuple(str(key) for key in item.network.layers if key not in present)
    return NetworkReport(item.use.path, item.matched, unmatched, tuple(item.mismatched), item.network.unknown)
