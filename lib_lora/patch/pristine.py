"""Where original weights come back from, bit for bit."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib_lora.patch.targets import Target, writing

Room = Callable[[torch.device, int], bool]


def has_room(device: torch.device, needed: int) -> bool:
    """Whether `needed` bytes more may be taken on a device: a third of its memory must stay free for making pictures.

    Main memory is where copies would go otherwise, so it always has room.
    """
    if device.type in ("cpu", "mps"):
        return True
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused - needed >= total / 3


@dataclass
class _Backup:
    weight: Tensor | None  # None: the module had no such parameter
    parameter: weakref.ReferenceType[nn.Parameter]
    version: int | None
    mark: Tensor | None = None  # some of the numbers we wrote, where torch counts no writes

    def valid(self, parameter: nn.Parameter | None) -> bool:
        """Whether nobody has put other weights in since: same object, not written by e.g. `load_state_dict`."""
        return parameter is not None and self.parameter() is parameter and self.version == _version(parameter)

    @classmethod
    def of(cls, parameter: nn.Parameter, weight: Tensor | None) -> _Backup:
        """For a parameter as it is now. Its end, on the way to the meta device say, frees the original at once."""
        backup = cls(weight, weakref.ref(parameter), _version(parameter))
        weak = weakref.ref(backup)
        backup.parameter = weakref.ref(parameter, lambda _: _free(weak()))
        return backup


def _free(backup: _Backup | None) -> None:
    if backup is not None:
        backup.weight = None


def _version(parameter: nn.Parameter) -> int | None:
    """How often torch saw the parameter written in place; writes through `.data`, as ours, are not counted."""
    return None if parameter.is_inference() else parameter._version


def _sample(parameter: nn.Parameter) -> Tensor:
    """A few rows."""
    return parameter.data[:: max(1, len(parameter) // 4)].to(torch.float32, copy=True)


class Pristine:
    """The originals of the parameters that were changed, and of no others.

    Where the device has room, an original is not copied: it is kept as it is and the parameter gets memory of its own
    for what is merged, so that restoring costs nothing. Elsewhere the original is copied to main memory.
    Modules are held weakly: a model that is thrown away takes its originals with it.
    """

    def __init__(self, room: Room = has_room) -> None:
        self.room = room
        self._kept: weakref.WeakKeyDictionary[nn.Module, dict[str, _Backup]] = weakref.WeakKeyDictionary()
        self._stays: dict[torch.device, bool] = {}

    def __len__(self) -> int:
        return sum(len(names) for names in self._kept.values())

    @property
    def bytes(self) -> int:
        """Memory the originals take."""
        kept = (b.weight for names in self._kept.values() for b in names.values())
        return sum(weight.nbytes for weight in kept if weight is not None)

    def expect(self, targets: Iterable[Target]) -> None:
        """Decide for each device where the originals of these go, before any of them is asked for."""
        needed: dict[torch.device, int] = {}
        for target in targets:
            parameter = target.parameter
            if parameter is not None and not self.holds(target):
                needed[parameter.device] = needed.get(parameter.device, 0) + parameter.nbytes
        self._stays = {device: self.room(device, count) for device, count in needed.items()}

    def of(self, target: Target) -> Tensor:
        """The original of `target`, on its device; kept from the first use on, before anything was written.

        A bias that the module does not have is made, of zeros in the weight's dtype.
        """
        backup = self._kept.get(target.module, {}).get(target.name)
        parameter = target.parameter
        if backup is None or not backup.valid(parameter):
            weight = None if parameter is None else self._put_by(parameter)
            parameter = _made(target) if parameter is None else parameter
            backup = _Backup.of(parameter, weight)
            self._kept.setdefault(target.module, {})[target.name] = backup
        assert parameter is not None  # a valid backup has one
        return torch.zeros_like(parameter.data) if backup.weight is None else backup.weight.to(parameter.device)

    def _put_by(self, parameter: nn.Parameter) -> Tensor:
        stays = self._stays.get(parameter.device, False)
        return parameter.data if stays else parameter.data.to("cpu", copy=True)

    def space(self, target: Target) -> Tensor:
        """Where the new values of a kept `target` may be written; not the original's own memory. Give it to `set`."""
        parameter = target.parameter
        assert parameter is not None
        original = self._kept[target.module][target.name].weight
        data = parameter.data
        if original is None or original.device != data.device or original.data_ptr() != data.data_ptr():
            return data
        with writing(parameter):
            return torch.empty_like(data)

    def set(self, target: Target, values: Tensor) -> None:
        """Make `values`, which lie in what `space` gave, those of the parameter; the parameter object stays."""
        parameter = target.parameter
        assert parameter is not None
        if values.data_ptr() != parameter.data_ptr():
            parameter.data = values
        if parameter.is_inference():
            self._kept[target.module][target.name].mark = _sample(parameter)

    def holds(self, target: Target) -> bool:
        """Whether there is an original and the parameter still is the one that we changed."""
        backup = self._kept.get(target.module, {}).get(target.name)
        return backup is not None and backup.valid(target.parameter)

    def put_back(self, module: nn.Module, name: str) -> None:
        """Give the parameter its original values (the parameter object stays) and forget them.

        Weights that somebody else has put there in the meantime are left alone. A parameter that we made goes away.
        """
        backup = self._kept.get(module, {}).get(name)
        parameter = Target(module, name).parameter
        if backup is not None and parameter is not None and backup.valid(parameter):
            _give_back(module, name, parameter, backup.weight)
        self.drop(module, name)

    def drop(self, module: nn.Module, name: str) -> None:
        """Forget an original without writing anything: the module holds other base weights now."""
        names = self._kept.get(module, {})
        names.pop(name, None)
        if not names:
            self._kept.pop(module, None)

    def drop_replaced(self) -> None:
        """Forget the originals of parameters that other weights were loaded into since.

        torch counts writes, except those to parameters made in inference mode: there the numbers themselves tell.
        """
        for module, name in self:
            backup, parameter = self._kept[module][name], Target(module, name).parameter
            same = backup.valid(parameter)
            if same and backup.mark is not None and parameter is not None:
                mark = backup.mark.to(parameter.device, parameter.dtype).float()
                same = mark.shape == _sample(parameter).shape and torch.equal(mark, _sample(parameter))
            if not same:
                self.drop(module, name)

    def __iter__(self) -> Iterator[tuple[nn.Module, str]]:
        """Every parameter with an original."""
        return iter([(module, name) for module, names in list(self._kept.items()) for name in names])


def _give_back(module: nn.Module, name: str, parameter: nn.Parameter, weight: Tensor | None) -> None:
    if weight is None:
        setattr(module, name, None)
    elif (weight.device, weight.dtype) == (parameter.device, parameter.dtype):
        parameter.data = weight
    elif not parameter.is_meta:
        with writing(parameter):
            parameter.data.copy_(weight)


def _made(target: Target) -> nn.Parameter:
    weight = target.module.weight
    assert isinstance(weight, Tensor)
    made = nn.Parameter(torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device), requires_grad=False)
    setattr(target.module, target.name, made)
    return made
