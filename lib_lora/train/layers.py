"""The layers a job begins with: new ones, which change nothing, or those of a network file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from lib_lora.errors import BadConfig, ShapeMismatch
from lib_lora.files.codec import read_network
from lib_lora.keys.layer_key import LayerKey
from lib_lora.networks.base import Layer, LayerSpec, innermost
from lib_lora.networks.bias import Bias
from lib_lora.networks.dora import Dora
from lib_lora.networks.dylora import DyLora
from lib_lora.networks.lora import Lora
from lib_lora.networks.norm import Norm
from lib_lora.networks.registry import by_kind
from lib_lora.ports import Patchable, Slot
from lib_lora.train.sections import NetworkSection
from lib_lora.train.targets import SWITCHES, is_ia3_column, pattern, target_keys, weight_of

RANKED = ("lora", "locon", "loha", "lokr", "glora", "dylora")  # types with alpha / rank; DoRA goes round these
# What a file's layers may be called, by the type a job trains; norms may be in every file.
KINDS: Mapping[str, tuple[str, ...]] = {
    "lora": ("lora",),
    "locon": ("lora",),
    "dylora": ("lora",),
    "ia3": ("ia3", "ia3_peft"),
    "full": ("full", "bias"),
    "oft": ("oft",),
}


def layers_for(
    model: Patchable,
    network: NetworkSection,
    generator: torch.Generator,
    names: Mapping[str, LayerKey] | None = None,
) -> dict[LayerKey, Layer]:
    """The layers of `network.continue_from` if that is set, else new ones. `names`: see `codec.read_network`."""
    if network.continue_from:
        return continued(model, network, names)
    return new_layers(model, network, generator)


def new_layers(model: Patchable, network: NetworkSection, generator: torch.Generator) -> dict[LayerKey, Layer]:
    """A fresh layer for every target: delta exactly 0, float32, on the device of its weight. Raises BadConfig."""
    if network.dora and network.type not in RANKED:
        raise BadConfig(f"network.dora = true goes round {', '.join(RANKED)}, not {network.type}; switch it off")
    slots = model.slots()
    ranks = _ranks(network)
    return {key: _new(key, slots[key], network, ranks, generator) for key in target_keys(model, network)}


def continued(
    model: Patchable, network: NetworkSection, names: Mapping[str, LayerKey] | None = None
) -> dict[LayerKey, Layer]:
    """The layers of the file `network.continue_from`, float32, on the devices of their weights.

    The file says which layers there are and of what rank; type and DoRA must be the job's. Raises BadConfig if they
    are not, if part of the file would be lost, or if it is for another base model; BadFile, UnknownFormat.
    """
    path = network.continue_from
    found = read_network(path, known=names)
    if found.unknown:
        raise BadConfig(
            f"network.continue_from = {path!r}: {len(found.unknown)} of its tensors belong to no layer known here "
            f"(first: {found.unknown[0]!r}) and would be lost; choose another file"
        )
    _refuse_other_parts(path, found.layers, network)
    slots, layers = model.slots(), {}
    for key, layer in sorted(found.layers.items()):
        if key not in slots:
            raise BadConfig(
                f"network.continue_from = {path!r}: the model has no layer {key}; use the file's base model"
            )
        weight = weight_of(slots[key])
        layer = _as_job_has_it(path, key, layer, network).float().to(weight.device)
        try:
            with torch.no_grad():
                layer.delta(weight)
        except ShapeMismatch as error:
            raise BadConfig(f"network.continue_from = {path!r}, layer {key}: {error}") from None
        layers[key] = layer.requires_grad_(True)
    return layers


def _new(key: LayerKey, slot: Slot, network: NetworkSection, ranks: list[_Rank], generator: torch.Generator) -> Layer:
    weight = weight_of(slot)
    if weight.dim() == 1:
        layer: Layer = by_kind("norm").init(LayerSpec(tuple(weight.shape), 1, 1.0), generator)
        if slot.bias is None or getattr(slot.module, slot.bias, None) is None:
            layer = Norm(torch.zeros(weight.shape), None)
        return layer.to(weight.device)
    spec = _spec(key, weight, network, ranks)
    cls = DyLora if network.type == "dylora" else by_kind("lora" if network.type == "locon" else network.type)
    layer = cls.init(spec, generator).to(weight.device)
    if network.dora:
        layer = Dora.around(layer, weight, columns=network.dora_axis == "columns")
    if network.train_bias and slot.bias is not None and getattr(slot.module, slot.bias, None) is not None:
        layer = Bias(layer, torch.zeros(weight.shape[0], device=weight.device))
    return layer


class _Rank:
    """One line of `network.ranks`: 'pattern=rank' or 'pattern=rank:alpha'."""

    def __init__(self, line: str) -> None:
        text, equals, numbers = line.rpartition("=")
        rank, colon, alpha = numbers.partition(":")
        try:
            self.rank, self.alpha = int(rank), float(alpha) if colon else None
            if not equals or self.rank < 1 or (self.alpha is not None and not 0 < self.alpha < math.inf):
                raise ValueError
        except ValueError:
            raise BadConfig(
                f"network.ranks: {line!r} is not accepted; give 'pattern=rank' or 'pattern=rank:alpha', both above 0"
            ) from None
        self.pattern = pattern("network.ranks", text)


def _ranks(network: NetworkSection) -> list[_Rank]:
    return [_Rank(line) for line in network.ranks]


def _spec(key: LayerKey, weight: Tensor, network: NetworkSection, ranks: list[_Rank]) -> LayerSpec:
    wide = weight.dim() == 4 and tuple(weight.shape[2:]) != (1, 1)
    rank, alpha = (network.conv_rank, network.conv_alpha) if wide else (network.rank, network.alpha)
    for line in ranks:
        if line.pattern.search(str(key)):
            rank, alpha = line.rank, alpha if line.alpha is None else line.alpha
            break
    if network.rslora:
        alpha *= math.sqrt(rank)  # written so: every reader divides by the rank, and gets alpha / sqrt(rank)
    options: dict[str, object] = {
        "tucker": network.tucker,
        "factor": network.factor or -1,
        "full_matrix": network.full_matrix,
        "decompose_both": network.decompose_both,
        "constraint": network.constraint,
        "rescale": network.rescale,
        "unit": network.unit,
        "train_on_input": is_ia3_column(key),
    }
    return LayerSpec(tuple(weight.shape), rank, alpha, options)


def _refuse_other_parts(path: str, layers: Mapping[LayerKey, Layer], network: NetworkSection) -> None:
    for part, count in sorted(Counter(key.part for key in layers).items()):
        if not getattr(network, SWITCHES[part]):
            raise BadConfig(
                f"network.continue_from = {path!r} has {count} layers of part {part}, which would be lost; "
                f"set network.{SWITCHES[part]} = true"
            )


def _as_job_has_it(path: str, key: LayerKey, layer: Layer, network: NetworkSection) -> Layer:
    """The file's layer, in units for DyLoRA. Raises BadConfig if it is of another type than the job's."""
    core = innermost(layer)
    if core.kind == "norm":
        return layer
    if core.kind not in KINDS.get(network.type, (network.type,)):
        raise BadConfig(
            f"network.continue_from = {path!r}: layer {key} is of type {core.kind!r}, and network.type = "
            f"{network.type!r}; set the type that the file has"
        )
    dora = any(isinstance(module, Dora) for module in layer.modules())
    if dora != network.dora:
        raise BadConfig(
            f"network.continue_from = {path!r} {'has' if dora else 'has no'} DoRA magnitudes, and network.dora = "
            f"{str(network.dora).lower()}; set network.dora = {str(dora).lower()}"
        )
    if network.type != "dylora" or not isinstance(core, Lora):
        return layer
    units = DyLora.of(core, network.unit)
    if core is layer:
        return units
    for module in layer.modules():
        if getattr(module, "core", None) is core:
            module.core = units
    return layer
