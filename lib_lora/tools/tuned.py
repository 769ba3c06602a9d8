"""A fully fine-tuned model as a checkpoint: its base's own file, with the change of every trained layer in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_lora.errors import BadConfig
from lib_lora.files.checkpoint_convert import parts_to_compvis
from lib_lora.files.tensors import TensorInfo, file_dtype, tensor_reader, torch_dtype, write_stream
from lib_lora.keys.checkpoint import VAE, Piece, checkpoint_pieces
from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey
from lib_lora.models.compvis_file import EMA_PREFIX, ema_name
from lib_lora.networks.base import Layer
from lib_lora.networks.network import Network
from lib_lora.tools.merge import Loaded, NetworkUse, merged_tensor, output_info, refuse_overflow


@dataclass(frozen=True)
class Template:
    """The base's tensors by CompVis' or sgm's names: their shapes and types, how to read one, the file's metadata."""

    infos: Mapping[str, TensorInfo]
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Tuned:
    """What to write: `layers` on the base `model`; `use_ema` if they were trained on the file's averaged weights."""

    model: Any
    layers: Mapping[LayerKey, Layer]
    dtype: torch.dtype
    use_ema: bool = False


def write_tuned(path: Path, tuned: Tuned, metadata: Mapping[str, str]) -> None:
    """Write a checkpoint that the webui loads: every weight base + delta in float32 or wider, rounded once.

    What was not trained is copied from the base's file; averaged weights are left out, as they are of the model as it
    was. Raises BadConfig if the base's file is not known, or if a layer has no place in it.
    """
    whole = Network("tuned", dict(tuned.layers))
    loaded = Loaded(NetworkUse(Path("tuned")), whole)
    with _template(tuned) as base:
        pieces = _pieces(base, tuned.layers)
        infos = {
            name: output_info(name, info, tuned.dtype)
            for name, info in base.infos.items()
            if not name.startswith(EMA_PREFIX)
        }

        def produce(name: str) -> Tensor:
            tensor = base.read(name)
            merged = merged_tensor(tensor, pieces[name], [loaded]) if name in pieces else tensor
            narrow = merged.to(torch_dtype(infos[name].dtype))
            refuse_overflow(name, merged, narrow)
            return narrow

        write_stream(path, infos, produce, {**base.metadata, **metadata})


def refuse_unwritable(tuned: Tuned) -> None:
    """Raises BadConfig or BadFile if `write_tuned` could not write this; only headers are read."""
    with _template(tuned) as base:
        _pieces(base, tuned.layers)


def _pieces(base: Template, layers: Mapping[LayerKey, Layer]) -> dict[str, tuple[Piece, ...]]:
    """What of the layers is in each of the base's tensors. Raises BadConfig if a layer is in none."""
    pieces = {name: own for name, info in base.infos.items() if (own := checkpoint_pieces(name, info.shape))}
    lost = sorted(str(key) for key in layers.keys() - {p.key for own in pieces.values() for p in own})
    if lost:
        raise BadConfig(
            f"{len(lost)} trained layers have no place in the base's file, first: {lost[0]!r}; "
            "save a network instead (method.as_lora)"
        )
    return pieces


@contextmanager
def _template(tuned: Tuned) -> Iterator[Template]:
    source = getattr(tuned.model, "source", None)
    if source is not None and source.is_file():
        with tensor_reader(source) as (header, read):
            averaged = {name: ema_name(name) for name in header.tensors} if tuned.use_ema else {}

            def value(name: str) -> Tensor:
                ema = averaged.get(name, name)
                return read(ema if ema in header.tensors else name)

            yield Template(header.tensors, value, dict(header.metadata))
        return
    state = parts_to_compvis(_parts(tuned.model), tuned.model.version)
    infos = {name: TensorInfo(file_dtype(t.dtype), tuple(t.shape)) for name, t in state.items()}
    yield Template(infos, state.__getitem__, {})


def _parts(model: Any) -> dict[str, dict[str, Tensor]]:
    """The tensors of a model made of diffusers' modules, by part. Raises BadConfig for any other."""
    if not hasattr(model, "unet") or not hasattr(model, "vae"):
        raise BadConfig(
            f"the file of the base {model.name!r} is not known any more, so no checkpoint can be made of it; "
            "load it from a file, or save a network instead (method.as_lora)"
        )
    named = {
        UNET: model.unet,
        VAE: model.vae,
        **{part: model.roots()[part] for part in (TE1, TE2) if part in model.roots()},
    }
    return {part: dict(module.state_dict()) for part, module in named.items()}
