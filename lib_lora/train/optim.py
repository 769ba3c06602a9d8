"""The optimizer of a run: made, given its rates, averaged for saving, and kept for resuming."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lib_lora.errors import BadConfig
from lib_lora.train.optimizers import Groups, build_optimizer
from lib_lora.train.schedules import rate_factor
from lib_lora.train.sections import OptimizerSection

__all__ = ["averaged", "make_optimizer", "optimizer_state", "rate_factor", "restore_optimizer", "set_rates"]
STATE, GROUPS = "state", "groups"
OURS = ("params", "lr", "base_lr", "text")  # what of a group the job decides, so that resuming may change it


def make_optimizer(section: OptimizerSection, groups: Groups) -> torch.optim.Optimizer:
    """The optimizer a job names, over {"params": [...], "lr": rate, "base_lr": rate} groups, in training mode.

    Raises BadConfig if what it needs is not installed, or if it does not take the job's arguments.
    """
    return build_optimizer(section, groups)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to its base rate times `factor`; returns the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


@contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """While open, parameters have the values to save and sample; afterwards those to train on, bit for bit.

    Only the schedule-free optimizers tell them apart (Defazio et al. 2024, arXiv:2405.15682). Save the state that a
    run is resumed from outside of this.
    """
    switch = getattr(optimizer, "eval", None)
    if not callable(switch):
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [(p, p.detach().clone()) for p in parameters]
    modes = [group.get("train_mode") for group in optimizer.param_groups]
    switch()
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in kept:  # its own way back, train(), rounds
                parameter.copy_(value)
        for group, mode in zip(optimizer.param_groups, modes):
            group["train_mode"] = mode


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything the optimizer has gathered: tensors by path (not copies), and the rest as a table that JSON can hold.

    Tensors and numbers kept for parameters, and what an optimizer moves in its groups (Prodigy's estimate, the
    schedule-free ones' sums of weights). Raises BadConfig for one that keeps something else.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    given = {*OURS, *inspect.signature(type(optimizer)).parameters}  # constants of the job are not state
    groups = {
        str(index): {name: value for name, value in group.items() if name not in given}
        for index, group in enumerate(optimizer.param_groups)
    }
    for where, value in _leaves({STATE: optimizer.state_dict()["state"], GROUPS: groups}):
        if isinstance(value, Tensor):
            tensors[where] = value
            continue
        try:
            plain[where] = json.loads(json.dumps(value))
        except TypeError as error:
            raise BadConfig(
                f"optimizer {type(optimizer).__name__} keeps {where} = {value!r}, which a run's state cannot hold; "
                "use another optimizer"
            ) from error
    return tensors, plain


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> None:
    """Go on from what `optimizer_state` gave. Rates and the class's own arguments stay the job's.

    Raises BadConfig if it is of another number of groups or parameters.
    """
    tree: dict[str, Any] = {}
    for where, value in {**tensors, **plain}.items():
        *between, name = where.split("/")
        table = tree
        for step in between:
            table = table.setdefault(step, {})
        table[name] = value
    state = {int(index): table for index, table in tree.get(STATE, {}).items()}
    groups = {int(index): table for index, table in tree.get(GROUPS, {}).items()}
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    if max(state, default=-1) >= count or max(groups, default=-1) >= len(optimizer.param_groups):
        raise BadConfig(
            f"the state is of an optimizer with other parameters than the job's {count} in "
            f"{len(optimizer.param_groups)} groups; resume with the settings the run began with"
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for index, table in groups.items():
        optimizer.param_groups[index].update(table)


def _leaves(tree: Mapping[Any, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested tables with their paths; 8-bit optimizers keep tables within a parameter's table."""
    for name, value in tree.items():
        path = f"{where}/{name}" if where else str(name)
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield path, value
