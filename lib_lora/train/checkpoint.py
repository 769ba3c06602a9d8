"""The state of a run, from which it goes on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig, BadFile
from lib_lora.files.tensors import read_header, read_tensors, write_tensors
from lib_lora.train.attach import Layers

LAYER, OPTIMIZER = "layer", "optimizer"


def save_state(path: Path, layers: Layers, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write layers, optimizer and step as one safetensors file, atomically. Raises BadFile if it cannot be written.

    Nothing else is needed: order, noise, timesteps and learning rate are functions of the seed and the step.
    """
    tensors: dict[str, Tensor] = dict(_parameters(layers))
    plain: dict[str, Any] = {}
    for where, value in _flat(OPTIMIZER, optimizer.state_dict()["state"]):
        if isinstance(value, Tensor):
            tensors[where] = value
        else:
            plain[where] = value
    about = {"step": str(step), "optimizer": _kind(optimizer), "plain": json.dumps(plain)}
    write_tensors(path, tensors, about)


def load_state(path: Path, layers: Layers, optimizer: torch.optim.Optimizer) -> int:
    """Fill layers and optimizer from a state file; returns the step it was saved after.

    Raises BadFile if the file is damaged, BadConfig if the job's layers or optimizer are others than the state's.
    """
    try:
        about, tensors = read_header(path).metadata, read_tensors(path)
        step, plain, kind = int(about["step"]), dict(json.loads(about["plain"])), about["optimizer"]
    except (BadFile, KeyError, ValueError, TypeError) as error:
        raise BadFile(
            f"{str(path)!r} is not a run's whole state ({error}); remove that file to start this run anew"
        ) from error
    if kind != _kind(optimizer):
        raise BadConfig(
            f"state {str(path)!r} is of the optimizer {kind}, the job's is {_kind(optimizer)}; "
            "resume with the optimizer.name the run began with"
        )
    _fill_layers(path, layers, tensors)
    values: dict[int, dict[str, Any]] = {}
    for where, value in {**tensors, **plain}.items():
        kind, index, *between = where.split("/")
        if kind == OPTIMIZER:
            table = values.setdefault(int(index), {})
            for name in between[:-1]:
                table = table.setdefault(name, {})
            table[between[-1]] = value
    optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def _kind(optimizer: torch.optim.Optimizer) -> str:
    return type(getattr(optimizer, "optimizer", optimizer)).__name__  # accelerate wraps the one the job names


def _flat(where: str, tree: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The leaves of nested tables with their paths; 8-bit optimizers keep tables within a parameter's table."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{where}/{name}", value)
        else:
            yield f"{where}/{name}", value


def _parameters(layers: Layers) -> dict[str, nn.Parameter]:
    return {f"{LAYER}/{key}/{name}": p for key, layer in layers.items() for name, p in layer.named_parameters()}


def _fill_layers(path: Path, layers: Layers, tensors: Mapping[str, Tensor]) -> None:
    wanted = _parameters(layers)
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(LAYER + "/")}
    if {n: tuple(p.shape) for n, p in wanted.items()} != {n: tuple(t.shape) for n, t in found.items()}:
        raise BadConfig(
            f"state {str(path)!r} holds {len(found)} tensors for other layers than the job's {len(wanted)}; "
            "resume with the network settings and model the run began with"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(found[name])
