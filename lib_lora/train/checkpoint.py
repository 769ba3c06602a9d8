"""The state of a run, from which it goes on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lib_lora.errors import BadConfig, BadFile
from lib_lora.files.tensors import read_header, read_tensors, write_tensors
from lib_lora.train.optim import optimizer_state, restore_optimizer

if TYPE_CHECKING:
    from lib_lora.train.session import Session

TRAINED, OPTIMIZER, AVERAGE = "trained", "optimizer", "average"


def save_state(path: Path, session: Session, step: int) -> None:
    """Write what is trained, the optimizer and the step as one safetensors file, atomically. Raises BadFile.

    Nothing else is needed: order, noise, timesteps and learning rate are functions of the seed and the step.
    """
    moved, plain = optimizer_state(session.optimizer)
    tensors: dict[str, Tensor] = {f"{TRAINED}/{name}": p for name, p in session.named_parameters().items()}
    tensors |= {f"{OPTIMIZER}/{name}": tensor for name, tensor in moved.items()}
    if session.ema is not None:
        tensors |= {f"{AVERAGE}/{name}": tensor for name, tensor in session.ema.state().items()}
    about = {
        "step": str(step),
        "optimizer": type(session.optimizer).__name__,
        "plain": json.dumps(plain),
        "scaler": json.dumps(session.scaler.state() if session.scaler else None),
    }
    write_tensors(path, tensors, about)


def load_state(path: Path, session: Session) -> int:
    """Fill a session made for the same job from a state file; returns the step it was saved after.

    Raises BadFile if the file is damaged, BadConfig if the job trains something else or with another optimizer.
    """
    try:
        about, tensors = read_header(path).metadata, read_tensors(path)
        if "plain" in about and "scaler" not in about:
            raise ValueError("it is of an older version, whose states cannot be read any more")
        step, plain, kind = int(about["step"]), dict(json.loads(about["plain"])), about["optimizer"]
        scaler: dict[str, Any] | None = json.loads(about["scaler"])
    except (BadFile, KeyError, ValueError, TypeError) as error:
        raise BadFile(
            f"{str(path)!r} is not a run's whole state ({error}); remove that file to start this run anew"
        ) from error
    if kind != type(session.optimizer).__name__:
        raise BadConfig(
            f"state {str(path)!r} is of the optimizer {kind}, the job's is {type(session.optimizer).__name__}; "
            "resume with the optimizer.name the run began with"
        )
    averages = _under(tensors, AVERAGE)
    if bool(averages) != (session.ema is not None):
        raise BadConfig(
            f"state {str(path)!r} has {'an' if averages else 'no'} average of what was trained, the job "
            f"{'none' if averages else 'one'}; resume with the optimizer.ema the run began with"
        )
    _fill(path, session, _under(tensors, TRAINED))
    restore_optimizer(session.optimizer, _under(tensors, OPTIMIZER), plain)
    if session.ema is not None:
        session.ema.load(averages)
    if session.scaler is not None and scaler is not None:
        session.scaler.load(scaler)
    return step


def _under(tensors: Mapping[str, Tensor], root: str) -> dict[str, Tensor]:
    return {name[len(root) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(root + "/")}


def _fill(path: Path, session: Session, found: Mapping[str, Tensor]) -> None:
    wanted = session.named_parameters()
    if {n: tuple(p.shape) for n, p in wanted.items()} != {n: tuple(t.shape) for n, t in found.items()}:
        raise BadConfig(
            f"state {str(path)!r} holds {len(found)} tensors for other layers than the job's {len(wanted)}; "
            "resume with the network settings and model the run began with"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(found[name])
