"""Where original weights come back from, bit for bit."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from lib_lora.patch.targets import Target, writing


def _version(parameter: nn.Parameter) -> int | None:
    """How often torch saw the parameter written in place; writes through `.data`, as ours, are not counted."""
    return None if parameter.is_inference() else parameter._version


@dataclass(frozen=True)
class _Backup:
    weight: Tensor
    parameter: weakref.ReferenceType[nn.Parameter]
    version: int | None

    def valid(self, parameter: nn.Parameter) -> bool:
        """Whether nobody has put other weights in since: same object, not written by e.g. `load_state_dict`."""
        return self.parameter() is parameter and self.version == _version(parameter)


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
        return sum(b.weight.nbytes for names in self._kept.values() for b in names.values())

    def of(self, target: Target) -> Tensor:
        """The original of `target`, on its device; copied on first use, before anything was written."""
        backup = self._kept.get(target.module, {}).get(target.name)
        parameter = target.parameter
        if backup is None or not backup.valid(parameter):
            backup = _Backup(parameter.data.clone(), weakref.ref(parameter), _version(parameter))
            self._kept.setdefault(target.module, {})[target.name] = backup
        weight = backup.weight.to(parameter.device)
        return weight if target.rows is None else weight[target.rows]

    def holds(self, target: Target) -> bool:
        """Whether there is a copy and the parameter still is the one that we changed."""
        backup = self._kept.get(target.module, {}).get(target.name)
        return backup is not None and backup.valid(target.parameter)

    def put_back(self, module: nn.Module, name: str) -> None:
        """Copy the original into the parameter (the parameter object stays) and free the copy.

        Weights that somebody else has put there in the meantime are left alone.
        """
        backup = self._kept.get(module, {}).get(name)
        parameter = getattr(module, name, None)
        if backup is not None and isinstance(parameter, nn.Parameter) and backup.valid(parameter):
            with writing(parameter):
                parameter.data.copy_(backup.weight)
        self.drop(module, name)

    def drop(self, module: nn.Module, name: str) -> None:
        """Free the copy without writing it anywhere."""
        names = self._kept.get(module, {})
        names.pop(name, None)
        if not names:
            self._kept.pop(module, None)

    def __iter__(self) -> Iterator[tuple[nn.Module, str]]:
        """Every (module, parameter name) with a copy, as a snapshot that may be changed while iterating."""
        return iter([(module, name) for module, names in self._kept.items() for name in names])
