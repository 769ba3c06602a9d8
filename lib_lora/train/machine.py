"""What this process could train on: GPU memory and packages, asked of what is loaded already."""

from __future__ import annotations

import importlib.util

from lib_lora.train.wizard import Machine


def this_machine(version: str) -> Machine:
    """The machine as jobs on a base of this version see it."""
    memory = gpu_memory()
    return Machine(version, memory, memory is not None and importlib.util.find_spec("bitsandbytes") is not None)


def gpu_memory() -> int | None:
    """Bytes of the first GPU's memory; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)
