"""What a job needs, and what it must leave as it was: random states, flags, and every bit of the base weights."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import nn

from lib_lora.errors import TrainingFailed, WrongBaseModel
from lib_lora.models.ldm_model import LdmModel
from lib_lora.models.precision import device_of

BACKEND_FLAGS = (
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_tf32"),
)


def checksums(root: nn.Module) -> dict[str, int]:
    """CRC-32 of each parameter's bytes, by name; about 1 s per GB."""
    found = {}
    for name, parameter in root.named_parameters():
        raw = parameter.detach().contiguous().flatten().view(torch.uint8).cpu()
        found[name] = zlib.crc32(raw.numpy().tobytes())
    return found


def require_in_place(model: LdmModel, device: torch.device) -> None:
    """Raises WrongBaseModel, with the way out, if parts of the model are moved around, or are not on `device`."""
    require_whole(model.model)
    places = {device_of(root).type for root in model.roots().values()} - {device.type}
    if places:
        raise WrongBaseModel(
            f"cannot train while the checkpoint is on the {places.pop()} and not on the {device.type}; press Settings "
            "> Actions > 'Load SD checkpoint to VRAM from RAM' and start again"
        )


def require_whole(sd_model: Any) -> None:
    """Raises WrongBaseModel, with the way out, if the webui moves parts of the model around."""
    if getattr(sd_model, "lowvram", False):
        raise WrongBaseModel(
            "cannot train while --medvram, --medvram-sdxl or --lowvram moves parts of the model around; start the "
            "webui without that option, or train from the command line: python -m lib_lora train JOB.toml"
        )


@contextmanager
def unharmed(root: nn.Module, prove: bool = True) -> Iterator[None]:
    """Restore random states and flags at the end, then prove that `root`'s weights are bit for bit the same.

    Raises TrainingFailed if they are not, unless the block itself raised something.
    """
    before = checksums(root) if prove else {}
    with random_states(), backend_flags():
        yield
    if not prove:
        return
    after = checksums(root)
    changed = [name for name, value in before.items() if after.get(name) != value]
    if changed:
        raise TrainingFailed(
            f"{len(changed)} base weights differ after the run, first {changed[0]!r}; reload the checkpoint before you "
            "go on, and report this as a bug"
        )


@contextmanager
def random_states() -> Iterator[None]:
    """Put Python's, numpy's and torch's random states back."""
    python, array, cpu = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    gpus: list[Any] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)


@contextmanager
def backend_flags() -> Iterator[None]:
    """Put cudnn's and TF32's flags and the deterministic mode back."""
    flags = [(owner, name, getattr(owner, name)) for owner, name in BACKEND_FLAGS]
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        for owner, name, value in flags:
            setattr(owner, name, value)
        now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        if now != (deterministic, warn_only):  # the call imports torch's compiler, seconds of work: not for nothing
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
