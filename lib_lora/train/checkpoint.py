"""What a run leaves behind: the network's file, and the state from which it goes on bit for bit."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_lora.errors import BadConfig, BadFile
from lib_lora.train.attach import Layers

LAYER, OPTIMIZER = "layer", "optimizer"


def save_state(path: Path, layers: Layers, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write layers, optimizer and step as one safetensors file, atomically.

    Nothing else is needed: order, noise, timesteps and learning rate are functions of the seed and the step.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for key, layer in layers.items():
        for name, parameter in layer.named_parameters():
            tensors[f"{LAYER}/{key}/{name}"] = parameter
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            where = f"{OPTIMIZER}/{index}/{name}"
            if isinstance(value, Tensor):
                tensors[where] = value
            else:
                plain[where] = value
    # cloned: safetensors refuses tensors that share memory, as 8-bit optimizers' tables do
    owned = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    write_atomic(path, save(owned, {"step": str(step), "plain": json.dumps(plain)}))


def load_state(path: Path, layers: Layers, optimizer: torch.optim.Optimizer) -> int:
    """Fill layers and optimizer from a state file; returns the step it was saved after.

    Raises BadFile if the file is damaged, BadConfig if the job's layers are others than the state's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        step, plain = int(about["step"]), json.loads(about["plain"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise BadFile(f"state {str(path)!r} cannot be read ({error}); remove it to start this run anew") from error
    _fill_layers(path, layers, tensors)
    values: dict[int, dict[str, Any]] = {}
    for where, value in {**tensors, **plain}.items():
        kind, _, rest = where.partition("/")
        if kind == OPTIMIZER:
            index, _, name = rest.partition("/")
            values.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that at any moment either the old or the whole new file is there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _fill_layers(path: Path, layers: Layers, tensors: Mapping[str, Tensor]) -> None:
    wanted = {
        f"{LAYER}/{key}/{name}": parameter
        for key, layer in layers.items()
        for name, parameter in layer.named_parameters()
    }
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(LAYER + "/")}
    if {n: tuple(p.shape) for n, p in wanted.items()} != {n: tuple(t.shape) for n, t in found.items()}:
        raise BadConfig(
            f"state {str(path)!r} holds {len(found)} tensors for other layers than the job's {len(wanted)}; "
            "resume with the network settings and model the run began with"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(found[name])
