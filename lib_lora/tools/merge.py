"""Networks merged into a checkpoint file for good: on state dicts alone, one tensor in memory at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lib_lora.errors import BadConfig, ShapeMismatch, WrongBaseModel
from lib_lora.files.codec import base_version, base_versions, read_network
from lib_lora.files.tensors import Header, TensorInfo, file_dtype, tensor_reader, torch_dtype, write_stream
from lib_lora.keys.checkpoint import Piece, checkpoint_pieces
from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.keys.versions import SD1, SD2, SDXL, title
from lib_lora.networks.base import Layer
from lib_lora.networks.network import Network
from lib_lora.patch import merge as weights
from lib_lora.patch.merge import Share

_MODEL_PREFIXES = (
    *("model.", "model_ema.", "first_stage_model.", "cond_stage_model.", "conditioner."),
    *("unet.", "vae.", "text_encoder.", "text_encoder_2."),
)
Pieces = Mapping[str, tuple[Piece, ...]]  # by the tensor's name in the checkpoint
Read = Callable[[str], Tensor]
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
class Loaded:
    use: NetworkUse
    network: Network
    matched: set[LayerKey] = field(default_factory=set)
    mismatched: dict[LayerKey, str] = field(default_factory=dict)

    def strength(self, key: LayerKey) -> float:
        return self.use.unet if key.part == UNET else self.use.te


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
    loaded = [Loaded(use, read_network(use.path)) for use in job.networks]
    with tensor_reader(job.checkpoint) as (header, read):
        found = {name: checkpoint_pieces(name, info.shape) for name, info in header.tensors.items()}
        pieces = {name: own for name, own in found.items() if own}
        _check_versions(job, read, loaded, pieces)
        infos = {name: output_info(name, info, job.dtype) for name, info in header.tensors.items()}

        def produce(name: str) -> Tensor:
            dtype = torch_dtype(infos[name].dtype)
            tensor = read(name)
            merged = merged_tensor(tensor, pieces[name], loaded) if name in pieces else tensor
            refuse_overflow(name, merged, narrow := merged.to(dtype))
            return narrow

        write_stream(job.out, infos, produce, _metadata(header, loaded))
    present = {piece.key for own in pieces.values() for piece in own}
    biased = {piece.key for own in pieces.values() for piece in own if piece.parameter == "bias"}
    return [_report(item, present, biased) for item in loaded]


def merged_tensor(tensor: Tensor, pieces: Sequence[Piece], loaded: Sequence[Loaded]) -> Tensor:
    """A checkpoint's tensor with every network's change of its pieces, in float32 or wider; itself if none has one."""
    whole: Tensor | None = None
    for piece in pieces:
        wanted = [item for item in loaded if _changes(item.network.layers.get(piece.key), piece)]
        if not wanted:
            continue
        if whole is None:  # torch promotes no 8-bit floats, so the wide dtype is named
            whole = tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32, copy=True)
        part = piece_of(whole, piece)
        part.copy_(_changed(part, piece, wanted))
    return tensor if whole is None else whole


def _changed(part: Tensor, piece: Piece, wanted: Sequence[Loaded]) -> Tensor:
    """A piece with the change of every network that fits; the others are noted."""
    with torch.no_grad():
        try:
            changed = weights.merged(part, [_share(item, piece) for item in wanted])
        except ShapeMismatch:
            wanted = [item for item in wanted if _fitting(item, piece, part)]
            changed = weights.merged(part, [_share(item, piece) for item in wanted])
    for item in wanted:
        item.matched.add(piece.key)
    return changed


def _changes(layer: Layer | None, piece: Piece) -> bool:
    return layer is not None and (layer.changes_bias if piece.parameter == "bias" else layer.changes_weight)


def piece_of(whole: Tensor, piece: Piece) -> Tensor:
    """The view of a checkpoint's tensor that is one layer's, as (out, in, ...)."""
    part = whole if piece.rows is None else whole[piece.rows[0] : piece.rows[1]]
    return part.t() if piece.transposed and part.dim() == 2 else part


def _share(item: Loaded, piece: Piece) -> Share:
    """What a network gives to a piece that it changes."""
    return Share(item.network.layers[piece.key], item.strength(piece.key), bias=piece.parameter == "bias")


def _fitting(item: Loaded, piece: Piece, part: Tensor) -> bool:
    """Whether a network's share fits a piece; a note if it does not."""
    try:
        with torch.no_grad():
            weights.merged(part, [_share(item, piece)])
    except ShapeMismatch as error:
        item.mismatched[piece.key] = str(error)
        return False
    return True


def refuse_overflow(name: str, wide: Tensor, narrow: Tensor) -> None:
    """Raises BadConfig if rounding made a finite number infinite."""
    if wide.dtype == narrow.dtype or narrow.element_size() == 1 or not narrow.is_floating_point():
        return
    if bool((~torch.isfinite(narrow) & torch.isfinite(wide)).any()):
        raise BadConfig(
            f"{name} has numbers up to {float(wide.abs().max()):.3g} after merging, too large for {narrow.dtype}; "
            "choose --dtype fp32 or bf16, or lower strengths"
        )


def output_info(name: str, info: TensorInfo, dtype: torch.dtype | None) -> TensorInfo:
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


def _check_versions(job: MergeJob, read: Read, loaded: Sequence[Loaded], pieces: Pieces) -> None:
    """Refuse before anything is written what cannot fit."""
    if not pieces:
        raise WrongBaseModel(
            f"{job.checkpoint} has no layer of a Stable Diffusion model ({title(SD1)}, {title(SD2)} or {title(SDXL)}); "
            "choose a full checkpoint"
        )
    version = _version_of(pieces)
    for item in loaded:
        for_these = base_versions(item.network)
        wrong = bool(for_these) and version not in for_these
        if wrong or not any(_fits(item, piece, read, name) for name, own in pieces.items() for piece in own):
            made_for = title(base_version(item.network))
            raise WrongBaseModel(
                f"no layer of {item.use.path} fits {job.checkpoint}: it was made for {made_for}, or for another size "
                "of model; choose a network made for this checkpoint"
            )


def _version_of(pieces: Pieces) -> str:
    """SD1, SD2 or SDXL, by the text encoders' names; by the depth of the UNet's transformers without any."""
    if any(name.startswith(("conditioner.", "text_encoder_2.")) or ".label_emb." in name for name in pieces):
        return SDXL
    wide = any(name.startswith("cond_stage_model.model.") for name in pieces)
    deep = any(piece.key.path.startswith("text_model.encoder.layers.12.") for own in pieces.values() for piece in own)
    return SD2 if wide or deep else SD1


def _fits(item: Loaded, piece: Piece, read: Read, name: str) -> bool:
    if not _changes(item.network.layers.get(piece.key), piece):
        return False
    # The weight itself, for some types ask more of it than a shape.
    return _fitting(Loaded(item.use, item.network), piece, piece_of(read(name), piece))


def _metadata(header: Header, loaded: Sequence[Loaded]) -> dict[str, str]:
    """The checkpoint's metadata, without hashes that no longer hold, and what was merged."""
    kept = {name: value for name, value in header.metadata.items() if name not in _STALE}
    merged = [{"name": i.use.path.stem, "te": i.use.te, "unet": i.use.unet} for i in loaded]
    return {**kept, "lorakit_merged": json.dumps(merged, ensure_ascii=False)}


def _report(item: Loaded, present: set[LayerKey], biased: set[LayerKey]) -> NetworkReport:
    layers = item.network.layers
    for key, layer in layers.items():
        if layer.changes_bias and key in present and key not in biased:
            item.mismatched.setdefault(key, "the network changes a bias that the checkpoint does not have")
    unmatched = tuple(str(key) for key in layers if key not in present)
    wrong = tuple(f"{key}: {why}" for key, why in item.mismatched.items())
    return NetworkReport(
        item.use.path, len(item.matched - item.mismatched.keys()), unmatched, wrong, item.network.unknown
    )
