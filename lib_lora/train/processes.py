"""Several processes that train one network together, under `accelerate launch`; usually there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """`count` processes of which this is number `rank`. What one draws or writes must not depend on the others."""

    count: int = 1
    rank: int = 0
    accelerator: Any = None

    @classmethod
    def start(cls, device: torch.device) -> Processes:
        """As the environment says (accelerate's variables); one process where nothing does."""
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
        return cls(accelerator.num_processes, accelerator.process_index, accelerator)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and tells events."""
        return self.rank == 0

    def add_up(self, total: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Sum `total` and every gradient over the processes, in place; returns the sum of totals.

        One buffer for all: hundreds of small tensors would cost a message each. A gradient missing in every process
        stays missing, so that optimizers skip it as they do in one process.
        """
        if self.count == 1:
            return total
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        given = torch.tensor([float(p.grad is not None) for p in parameters], device=total.device)
        flat = torch.cat([total.float().reshape(1), given, *(gradient.float().flatten() for gradient in gradients)])
        flat = self.accelerator.reduce(flat, reduction="sum")
        first, given, *rest = flat.split([1, len(parameters), *(gradient.numel() for gradient in gradients)])
        for parameter, gradient, count in zip(parameters, rest, given.tolist()):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if count else None
        return first[0]

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process goes through the block while the others wait, then they do."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def any(self, answer: bool) -> bool:
        """Whether any process says yes."""
        if self.count == 1:
            return answer
        device = self.accelerator.device
        return bool(self.accelerator.reduce(torch.tensor(float(answer), device=device), reduction="sum").item())

    def share(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Give back what was held."""
        if self.accelerator is not None:
            self.accelerator.free_memory()
