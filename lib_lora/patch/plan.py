"""What must be written: the networks' layers sorted by the parameters of the model that they change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from lib_lora.keys.layer_key import LayerKey
from lib_lora.networks.network import Network
from lib_lora.patch.merge import Share
from lib_lora.patch.targets import Piece, Target
from lib_lora.ports import Slot
from lib_lora.prompt.strengths import Strengths

FileState = tuple[Path, int, int, int]  # path, mtime, size, change time: what tells one state of a file from another
Signature = tuple[object, ...]


@dataclass(frozen=True)
class Source:
    """Which file, in which state, at which strengths: what decides whether weights must be merged anew."""

    file: FileState
    strengths: Strengths = field(default_factory=Strengths)
    dyn: int | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return self.file[0]


@dataclass(frozen=True)
class Loaded:
    """A network read from its file."""

    network: Network
    source: Source


@dataclass(frozen=True)
class Gift:
    """One network's share of one piece of a parameter; `load` is its place in the request."""

    load: int
    key: LayerKey
    piece: Piece
    share: Share


@dataclass
class Work:
    """All that changes one parameter."""

    target: Target
    gifts: list[Gift] = field(default_factory=list)

    def pieces(self) -> dict[Piece, list[Gift]]:
        """The gifts by the piece they go to."""
        found: dict[Piece, list[Gift]] = {}
        for gift in self.gifts:
            found.setdefault(gift.piece, []).append(gift)
        return found


@dataclass
class Plan:
    """The works, and for each network the layers and names that the model has no place for."""

    works: list[Work]
    unmatched: list[list[str]]


def make_plan(slots: Mapping[LayerKey, Slot], loads: Sequence[Loaded]) -> Plan:
    """Find each layer's parameters. A layer without a place is unmatched, by its key or by its name in the file."""
    works: dict[tuple[int, str], Work] = {}
    unmatched = [list(load.network.unknown) for load in loads]
    for i, load in enumerate(loads):
        for key, layer in load.network.layers.items():
            slot = slots.get(key)
            names = _names(slot, layer.changes_weight, layer.changes_bias) if slot is not None else None
            if slot is None or names is None:
                unmatched[i].append(str(key))
                continue
            strength = load.source.strengths.of(key)
            for name, bias in names:
                target = Target(slot.module, name)
                held = target.parameter
                # Modules may share a parameter: it is merged once, with what every one of them gets.
                place = (id(held), "") if held is not None else (id(slot.module), name)
                work = works.setdefault(place, Work(target))
                share = Share(layer, strength, load.source.dyn, bias)
                work.gifts.append(Gift(i, key, Piece.of(slot), share))
    return Plan(list(works.values()), unmatched)


def signature(work: Work, loads: Sequence[Loaded]) -> Signature:
    """What the parameter will hold, without looking at a tensor."""
    return tuple((loads[g.load].source.file, g.piece, g.share.strength, g.share.ranks, g.key) for g in work.gifts)


def _names(slot: Slot, weight: bool, bias: bool) -> list[tuple[str, bool]] | None:
    """(parameter, whether it is the bias) for what a layer changes; None if the module has no such weight."""
    if not isinstance(getattr(slot.module, slot.weight, None), Tensor):
        return None
    names = [(slot.weight, False)] if weight else []
    if bias and slot.bias is not None and (isinstance(slot.module, nn.Module) and hasattr(slot.module, slot.bias)):
        names.append((slot.bias, True))
    elif bias:
        return None
    return names
