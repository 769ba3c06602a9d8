"""A file <-> a Network, both directions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lib_lora.errors import BadFile, ShapeMismatch, UnknownFormat
from lib_lora.files.adapter_config import peft_configs
from lib_lora.files.tensors import Header, tensor_reader, torch_dtype, write_tensors
from lib_lora.keys import embeddings, exact, formats, kohya, peft_config, strangers, tensor_names, versions
from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.networks import registry
from lib_lora.networks.base import Layer
from lib_lora.networks.network import Network

# Tensors that may hold whole numbers; factors may not, they could be neither scaled nor trained.
_WHOLE_NUMBERS = frozenset({"alpha", "constraint", "on_input", "bias_indices", "bias_size", "oft_R.scaled_oft"})
_LARGEST = 1e6  # float16 ends before it; products of several larger factors would overflow float32
_TELLING = (".attn2.to_k", ".attn2.to_v", ".proj_in")  # layers of the UNet whose shapes tell versions apart
Read = Callable[[str], Tensor]


def read_network(path: str | Path, name: str | None = None, known: Mapping[str, LayerKey] | None = None) -> Network:
    """Read a network file of any dialect. `name` defaults to the file's stem.

    `known` are a model's layers by their names in the file: then nothing else is looked for, see `keys.exact`.

    Tensors that nobody understands, or whose shapes contradict each other, are listed in `Network.unknown`; the
    rest is read. A file for a base model whose layers we do not know gives a network with unknown names only: ask
    `base_version`. Raises BadFile (unreadable, NaN or inf), UnknownFormat (no network at all).
    """
    path = Path(path)
    with tensor_reader(path) as (header, read):
        network = _network(path, header, read, known)
    return dataclasses.replace(network, name=name or path.stem)


def read_outline(path: str | Path) -> Network:
    """Like `read_network`, from the header alone: factors are on the meta device, only single numbers are read."""
    path = Path(path)
    with tensor_reader(path) as (header, read):

        def outline(name: str) -> Tensor:
            info = header.tensors[name]
            dtype = torch_dtype(info.dtype)
            alone = math.prod(info.shape) == 1 or dtype is None  # dtype None: let the reader name the fault
            return read(name) if alone else torch.empty(info.shape, dtype=dtype, device="meta")

        return _network(path, header, outline)


def _network(path: Path, header: Header, read: Read, exact_names: Mapping[str, LayerKey] | None = None) -> Network:
    if exact_names is not None:
        reading = exact.place(header.shapes(), exact_names)
    else:
        reading = formats.place(header.shapes(), header.metadata)
    _refuse_strangers(path, header, reading)
    configs = peft_configs(path, header.metadata)
    layers: dict[LayerKey, Layer] = {}
    unknown = list(reading.unknown)
    for key, names in reading.layers.items():
        # Strange tensors are not even read: whatever they hold must not cost the layer.
        known = {tensor: file for tensor, file in names.items() if tensor_names.known(tensor)}
        unknown += [file for tensor, file in names.items() if tensor not in known]
        tensors = {tensor: read(file) for tensor, file in known.items()}
        if key in reading.peft:
            tensors |= _constants(configs.get(key.part, {}), key, tensors)
        layer = _layer(_untransposed(tensors))
        if layer is None:
            unknown += known.values()
            continue
        if "alpha" in tensors:
            tensors["alpha"] = torch.tensor(layer.alpha)  # as the layer counts it, if it does
        _refuse_nan(path, known, tensors)
        layers[key] = layer
    bundled = {token: _vectors(path, vectors, read) for token, vectors in reading.embeddings.items()}
    return Network(path.stem, layers, dict(header.metadata), tuple(unknown), reading.dialect, bundled)


def write_network(
    path: str | Path,
    network: Network,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    names: Mapping[LayerKey, str] | None = None,
) -> None:
    """Write a network in kohya's naming, or with these `names` for its layers, atomically.

    `metadata` defaults to the network's own, `dtype` to each tensor's. Equal networks give
    equal bytes. Raises BadFile if the file cannot be written.
    """
    write_tensors(path, network_tensors(network, dtype, names), network.metadata if metadata is None else metadata)


def network_tensors(
    network: Network, dtype: torch.dtype | None = None, names: Mapping[LayerKey, str] | None = None
) -> dict[str, Tensor]:
    """The tensors `write_network` writes, by kohya's names for the network's base version, embeddings included.

    alpha stays float32, since it may be no round number, and embeddings stay as they are: they are small, and equal to
    those in files of their own.
    """
    layers = {key: layer.to_tensors() for key, layer in network.layers.items()}
    if names is not None:
        tensors = {f"{names[key]}.{name}": t for key, own in sorted(layers.items()) for name, t in own.items()}
    else:
        tensors = kohya_tensors(layers, base_version(network))
    keep = {name for name, t in tensors.items() if dtype is None or t.numel() == 1 or not t.is_floating_point()}
    return {name: t if name in keep else t.to(dtype) for name, t in tensors.items()} | embedding_tensors(network)


def kohya_tensors(layers: Mapping[LayerKey, Mapping[str, Tensor]], version: str) -> dict[str, Tensor]:
    """Layers' own tensors under kohya's names for a base version."""
    tensors: dict[str, Tensor] = {}
    for key, own in sorted(layers.items()):
        prefix = kohya.layer_name(key, version)
        for name, tensor in own.items():
            if "constraint" in own:  # kohya's OFT, which calls that alpha, see `keys.formats`
                tensors[f"{prefix.replace('lora_', 'oft_', 1)}.{name.replace('constraint', 'alpha')}"] = tensor
            else:
                tensors[f"{prefix}.{name}"] = tensor
    return tensors


def embedding_tensors(network: Network) -> dict[str, Tensor]:
    """The network's token embeddings under the webui's names."""
    return {
        embeddings.bundled_name(token, encoder): vector
        for token, vectors in sorted(network.embeddings.items())
        for encoder, vector in vectors.items()
    }


def base_version(network: Network) -> str:
    """The network's own, the likeliest of `base_versions`, or "unknown"."""
    return network.version or next(iter(base_versions(network)), versions.UNKNOWN)


def base_versions(network: Network) -> tuple[str, ...]:
    """The base models the network fits, as in `keys.versions`: by its layers' names and the widths of its tensors.

    "sd1", "sd2", "sdxl", or several of them where nothing in the network tells them apart, the likeliest first; a name
    of its own for any other model; empty if it has no layer.
    """
    shapes = {
        key: {name: tuple(t.shape) for name, t in layer.to_tensors().items()}
        if key.part != UNET or key.path.endswith(_TELLING)
        else {}
        for key, layer in network.layers.items()
    }
    return versions.candidates(shapes, network.unknown)


def _layer(tensors: Mapping[str, Tensor]) -> Layer | None:
    """The layer of these tensors; None if they make none."""
    if not all(t.is_floating_point() or name in _WHOLE_NUMBERS for name, t in tensors.items()):
        return None
    try:
        return registry.build(tensors)
    except ShapeMismatch:
        return None  # its names are listed as unknown: one damaged layer must not cost the others


def _constants(config: peft_config.Config, key: LayerKey, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    numbers = peft_config.constants(config, key, {name: tuple(t.shape) for name, t in tensors.items()})
    return {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}


def _untransposed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PEFT's factors of an embedding, A (rank, tokens) and B (width, rank), as LoRA factors of its weight."""
    found = dict(tensors)
    for theirs, ours in (("lora_embedding_A", "lora_up.weight"), ("lora_embedding_B", "lora_down.weight")):
        if theirs in found and ours not in found and found[theirs].ndim == 2:
            found[ours] = found.pop(theirs).t().contiguous()
    return found


def _vectors(path: Path, names: Mapping[str, str], read: Read) -> dict[str, Tensor]:
    vectors = {encoder: read(name) for encoder, name in names.items()}
    _refuse_nan(path, names, vectors)
    return {encoder: t if t.ndim == 2 else t[None] for encoder, t in vectors.items()}


def _refuse_strangers(path: Path, header: Header, reading: formats.Reading) -> None:
    names = list(header.tensors)
    network = reading.layers or reading.embeddings or versions.foreign(reading.unknown) is not None
    if network and strangers.CONTROL_LORA not in header.tensors:
        return
    kind = strangers.describe(names)
    if kind is not None:
        raise UnknownFormat(f"{path} is no network for a prompt: this is {kind}")
    raise UnknownFormat(
        f"{path} holds no network layer that is recognised; its {len(names)} tensors look like "
        f"{', '.join(map(repr, names[:3])) or 'nothing'}; choose a LoRA / LyCORIS file"
    )


def _refuse_nan(path: Path, names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_meta or name not in names or not tensor.numel():
            continue
        wide = tensor if tensor.element_size() > 1 else tensor.float()  # fp8 and bool lack abs
        largest = float(wide.abs().max())
        if not largest <= _LARGEST:  # so that NaN is refused as well
            kind = f"numbers up to {largest:.1g}" if math.isfinite(largest) else "NaN or infinite numbers"
            raise BadFile(f"{path} holds {kind} in {names[name]!r}: its training failed; use another file")
