"""A file <-> a Network, both directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lib_lora.errors import BadFile, ShapeMismatch, UnknownFormat
from lib_lora.files.tensors import Header, tensor_reader, torch_dtype, write_tensors
from lib_lora.keys import formats, kohya, versions
from lib_lora.keys.layer_key import TE1, UNET, LayerKey
from lib_lora.networks import registry
from lib_lora.networks.base import Layer
from lib_lora.networks.network import Network


def read_network(path: str | Path, name: str | None = None) -> Network:
    """Read a network file. `name` defaults to the file's stem.

    Tensors that nobody understands, or whose shapes contradict each other, are listed in `Network.unknown`; the
    rest is read. A file for a base model whose layers we do not know gives a network with unknown names only: ask
    `base_version`. Raises BadFile (unreadable, NaN or inf), UnknownFormat (no network at all).
    """
    path = Path(path)
    with tensor_reader(path) as (header, read):
        network = _network(path, header, read)
    return Network(name or path.stem, network.layers, network.metadata, network.unknown, network.dialect)


def read_outline(path: str | Path) -> Network:
    """Like `read_network`, from the header alone: factors are on the meta device, only the alphas are read."""
    path = Path(path)
    with tensor_reader(path) as (header, read):

        def outline(name: str) -> Tensor:
            info = header.tensors[name]
            dtype = torch_dtype(info.dtype)
            alone = math.prod(info.shape) == 1 or dtype is None  # dtype None: let the reader name the fault
            return read(name) if alone else torch.empty(info.shape, dtype=dtype, device="meta")

        return _network(path, header, outline)


def _network(path: Path, header: Header, read: Callable[[str], Tensor]) -> Network:
    reading = formats.place(header.shapes(), header.metadata)
    if not reading.layers and versions.by_names(reading.unknown) is None:
        raise UnknownFormat(
            f"{path} holds no network layer that is recognised; its {len(header.tensors)} tensors look like "
            f"{', '.join(map(repr, list(header.tensors)[:3])) or 'nothing'}; choose a LoRA / LyCORIS file"
        )
    layers: dict[LayerKey, Layer] = {}
    unknown = list(reading.unknown)
    for key, names in reading.layers.items():
        tensors = {tensor: read(file) for tensor, file in names.items()}
        layer = _layer(tensors)
        if layer is None:
            unknown += names.values()
            continue
        _refuse_nan(path, names, tensors)
        layers[key] = layer
    return Network(path.stem, layers, dict(header.metadata), tuple(unknown), reading.dialect)


def write_network(
    path: str | Path,
    network: Network,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a network in kohya's naming, atomically.

    `metadata` defaults to the network's own, `dtype` to each tensor's. Equal networks give
    equal bytes. Raises BadFile if the file cannot be written.
    """
    write_tensors(path, network_tensors(network, dtype), network.metadata if metadata is None else metadata)


def network_tensors(network: Network, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors `write_network` writes, by kohya's names. alpha stays float32, since it may be no round number."""
    tensors: dict[str, Tensor] = {}
    for key, layer in sorted(network.layers.items()):
        for name, tensor in layer.to_tensors().items():
            keep = dtype is None or name == "alpha" or not tensor.is_floating_point()
            tensors[f"{kohya.layer_name(key)}.{name}"] = tensor if keep else tensor.to(dtype)
    return tensors


def base_version(network: Network) -> str:
    """ "sd1", "sd2", "sdxl", "flux", "sd3" or "unknown", by layer names and the width of its text states.

    A network that names only layers SD1 and SD2 share, at no width that tells them apart, counts as "sd1".
    """
    named = versions.by_names(network.unknown)
    if named is not None:
        return named
    if any(key.part not in (UNET, TE1) for key in network.layers):
        return versions.SDXL
    widths = (w for key, layer in network.layers.items() if (w := _text_width(key, layer)) is not None)
    return versions.by_widths(widths) or (versions.SD1 if network.layers else versions.UNKNOWN)


def _text_width(key: LayerKey, layer: Layer) -> int | None:
    """The width of the text states as this layer shows it: the input of cross-attention keys, or of CLIP attention."""
    if not key.path.endswith((".attn2.to_k", ".attn2.to_v", ".self_attn.q_proj", ".self_attn.k_proj")):
        return None
    down = layer.to_tensors().get("lora_down.weight")
    return int(down.shape[1]) if down is not None and down.ndim > 1 else None


def _layer(tensors: Mapping[str, Tensor]) -> Layer | None:
    if not all(t.is_floating_point() or name == "alpha" for name, t in tensors.items()):
        return None
    try:
        return registry.build(tensors)
    except ShapeMismatch:
        return None  # its names are listed as unknown: one damaged layer must not cost the others


def _refuse_nan(path: Path, names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_meta:
            continue
        wide = tensor if tensor.element_size() > 1 else tensor.float()  # fp8 has no isfinite
        if not bool(torch.isfinite(wide).all()):
            raise BadFile(
                f"{path} holds NaN or infinite numbers in {names[name]!r}: its training failed; use another file"
            )
