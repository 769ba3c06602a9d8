"""PEFT's folders: an adapter and its configuration for each part of the model, all layers of it of one type."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import torch

from lib_lora.files.adapter_config import NAME, WEIGHTS
from lib_lora.keys import naming
from lib_lora.keys.layer_key import PARTS, LayerKey
from lib_lora.networks.base import Layer
from lib_lora.networks.network import Network
from lib_lora.tools.drafts import Draft, Tensors, factors
from lib_lora.tools.plain_lora import plain_lora

_LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "alpha"}
_CORED = "LOHA with cores"
_CONFIG: dict[str, Any] = {"base_model_name_or_path": None, "inference_mode": True, "task_type": None}
Written = tuple[Tensors, dict[str, Any]]


def peft(network: Network, version: str) -> Draft:
    """A folder for each part, as PEFT saves one: `adapter_model.safetensors` and `adapter_config.json`.

    All layers of an adapter are of one type, LoRA (with DoRA or without), LoHa or IA3.
    """
    draft = Draft(embeddings=tuple(network.embeddings), metadata={"format": "pt"})
    for part in PARTS:
        layers = {key: layer for key, layer in network.layers.items() if key.part == part}
        kinds = _cored({key: _peft_kind(key, layer) for key, layer in layers.items()})
        told = Counter(kind for kind, _ in kinds.values() if kind)
        common = told.most_common(1)[0][0] if told else ""
        for key, (kind, reason) in kinds.items():
            if kind != common or not kind:
                draft.refused[key] = reason or f"PEFT keeps one type in a file, here {common}, and this is {kind}"
        plain = {key: layer for key, layer in layers.items() if key not in draft.refused}
        if plain:
            tensors, config = _WRITERS[common](plain, version)
            folder = PurePosixPath(naming.FOLDERS[part])
            draft.files[str(folder / f"{WEIGHTS}.safetensors")] = tensors
            draft.texts[str(folder / NAME)] = json.dumps({**_CONFIG, **config}, indent=2, sort_keys=True)
    return draft


def _peft_kind(key: LayerKey, layer: Layer) -> tuple[str, str]:
    """(the adapter type that can hold the layer, "") or ("", why none can)."""
    names = layer.to_tensors().keys()
    lora = plain_lora(layer)
    if not isinstance(lora, str):
        return ("LORA with DoRA" if lora.magnitude is not None else "LORA"), ""
    if {"hada_w1_a", "hada_w2_b"} <= names <= _LOHA:
        return (_CORED if "hada_t1" in names else "LOHA"), ""
    if names == {"ia3_l"}:
        return "IA3", ""
    if names == {"weight", "on_input"}:
        rows = not float(layer.to_tensors()["on_input"])
        refused = rows and naming.has_bias(key)
        return ("", "PEFT's IA3 would scale its bias as well") if refused else ("IA3", "")
    return "", lora if "lora_up.weight" in names else f"PEFT cannot hold type {layer.kind!r} of this file"


def _cored(kinds: dict[LayerKey, tuple[str, str]]) -> dict[LayerKey, tuple[str, str]]:
    """PEFT gives every convolution that is not 1x1 a core or none: other layers go along with either."""
    if not any(kind == _CORED for kind, _ in kinds.values()):
        return kinds
    free = {key for key, (kind, _) in kinds.items() if kind == "LOHA" and not naming.has_kernel(key)}
    return {key: (_CORED, "") if key in free else told for key, told in kinds.items()}


def _peft_lora(layers: Mapping[LayerKey, Layer], version: str) -> Written:
    tensors: Tensors = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    dora = bias = False
    for key, layer in layers.items():
        lora = plain_lora(layer)
        assert not isinstance(lora, str)
        lora = lora.with_axes(naming.weight_axes(key, version))
        if lora.bias is not None:  # PEFT scales it with the factors
            lora = lora.folded() if not lora.scale else dataclasses.replace(lora, bias=lora.bias / lora.scale)
        module = naming.PEFT_WRAPPER + key.path
        if naming.is_embedding(key):
            tensors[f"{module}.lora_embedding_A"] = lora.up.t().contiguous()
            tensors[f"{module}.lora_embedding_B"] = lora.down.t().contiguous()
        else:
            tensors |= factors(lora, module, "lora_B.weight", "lora_A.weight")
        ranks[key.path], alphas[key.path] = lora.rank, lora.scale * lora.rank
        dora, bias = dora or lora.magnitude is not None, bias or lora.bias is not None
    config = {"peft_type": "LORA", "use_dora": dora, "bias": "none", "use_rslora": False}
    config |= {"lora_bias": True} if bias else {}  # PEFT before 0.14 knows no such field
    return tensors, {**config, **_ranks(ranks, alphas, "lora_alpha")}


def _peft_loha(layers: Mapping[LayerKey, Layer], version: str) -> Written:
    tensors: Tensors = {}
    cores = any("hada_t1" in layer.to_tensors() for layer in layers.values())
    for key, layer in layers.items():
        own = {name: tensor for name, tensor in layer.to_tensors().items() if name != "alpha"}
        tensors |= {f"{naming.PEFT_WRAPPER}{key.path}.{name}": tensor for name, tensor in own.items()}
    ranks = {key.path: layer.rank for key, layer in layers.items()}
    alphas = {key.path: layer.alpha for key, layer in layers.items()}
    return tensors, {"peft_type": "LOHA", "use_effective_conv2d": cores, **_ranks(ranks, alphas, "alpha")}


def _peft_ia3(layers: Mapping[LayerKey, Layer], version: str) -> Written:
    tensors: Tensors = {}
    columns = []
    for key, layer in layers.items():
        own = layer.to_tensors()
        if "ia3_l" not in own:
            shape = (1, -1) if float(own["on_input"]) else (-1, 1)
            own["ia3_l"] = (own["weight"].double() + 1).to(torch.float32).reshape(shape)
        tensors[f"{naming.PEFT_WRAPPER}{key.path}.ia3_l"] = own["ia3_l"]
        columns += [key.path] if own["ia3_l"].shape[0] == 1 else []
    paths = sorted(key.path for key in layers)
    return tensors, {"peft_type": "IA3", "target_modules": paths, "feedforward_modules": columns}


_WRITERS = {
    "LORA": _peft_lora,
    "LORA with DoRA": _peft_lora,
    "LOHA": _peft_loha,
    _CORED: _peft_loha,
    "IA3": _peft_ia3,
}


def _ranks(ranks: Mapping[str, int], alphas: Mapping[str, float], name: str) -> dict[str, Any]:
    """PEFT's rank and alpha for most layers, and for those that differ."""
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    return {
        "target_modules": sorted(ranks),
        "r": rank,
        name: int(alpha) if alpha == int(alpha) else alpha,
        # Both patterns name a layer if one does: PEFT looks its name up in the first that has it.
        "rank_pattern": {p: r for p, r in ranks.items() if r != rank or alphas[p] != alpha},
        "alpha_pattern": {p: a for p, a in alphas.items() if a != alpha or ranks[p] != rank},
    }
