"""Where original weights come back from, bit for bit."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib_lora.patch.targets import Target, writing


def _version(parameter: nn.Parameter) -> int | None:
    """How often torch saw the parameter written in place; writes through `.data`, as ours, are not counted."""
    return None if parameter.is_inference() else parameter._version


@dataclass(frozen=True)
class _Backup:
    weight: Tensor | None  # None: the module had no such parameter
    parameter: weakref.ReferenceType[nn.Parameter]
    version: int | None

    def valid(self, parameter: nn.Parameter | None) -> bool:
        """Whether nobody has put other weights in since: same object, not written by e.g. `load_state_dict`."""
        return parameter is not None and self.parameter() is parameter and self.version == _version(parameter)


class Pristine:
    """Copies of the parameters that were changed, and of no others.

    Modules are held weakly: a model that is thrown away takes its backups with it.
    """

    def __init__(self) -> None:
        self._kept: weakref.WeakKeyDictionary[nn.Module, dict[str, _Backup]] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        return sum(len(names) for names in self._kept.values())

    @property
    def bytes(self) -> int:
        """Memory the copies take."""
        kept = (b.weight for names in self._kept.values() for b in names.values())
        return sum(weight.nbytes for weight in kept if weight is not None)

    def of(self, target: Target) -> Tensor:
        """The original of `target`, on its device; copied on first use, before anything was written.

        A bias that the module does not have is made, of zeros in the weight's dtype.
        """
        backup = self._kept.get(target.module, {}).get(target.name)
        parameter = target.parameter
        if backup is None or not backup.valid(parameter):
            copied = parameter.data.clone() if parameter is not None else None
            parameter = _made(target) if parameter is None else parameter
            backup = _Backup(copied, weakref.ref(parameter), _version(parameter))
            self._kept.setdefault(target.module, {})[target.name] = backup
        assert parameter is not None  # a valid backup has one
        return torch.zeros_like(parameter.data) if backup.weight is None else backup.weight.to(parameter.device)

    def holds(self, target: Target) -> bool:
        """Whether there is a copy and the parameter still is the one that we changed."""
        backup = self._kept.get(target.module, {}).get(target.name)
        return backup is not None and backup.valid(target.parameter)

    def put_back(self, module: nn.Module, name: str) -> None:
        """Copy the original into the parameter (the parameter object stays) and free the copy.

        Weights that somebody else has put there in the meantime are left alone. A parameter that we made goes away.
        """
        backup = self._kept.get(module, {}).get(name)
        parameter = getattr(module, name, None)
        if backup is not None and isinstance(parameter, nn.Parameter) and backup.valid(parameter):
            if backup.weight is None:
                setattr(module, name, None)
            else:
                with writing(parameter):
                    parameter.data.copy_(backup.weight)
        self.drop(module, name)

    def drop(self, module: nn.Module, name: str) -> None:
        """Free a copy without writing anything: the module holds other base weights now."""
        names = self._kept.get(module, {})
        names.pop(name, None)
        if not names:
            self._kept.pop(module, None)

    def __iter__(self) -> Iterator[tuple[nn.Module, str]]:
        """Every parameter with a copy."""
        return iter([(module, name) for module, names in list(self._kept.items()) for name in names])


def _made(target: Target) -> nn.Parameter:
    weight = target.module.weight
    assert isinstance(weight, Tensor)
    made = nn.Parameter(torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device), requires_grad=False)
    setattr(target.module, target.name, made)
    return made
