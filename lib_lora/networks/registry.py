"""The ordered tuples of network types and of modifiers. A new type is one file and one line here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from lib_lora.errors import BadConfig
from lib_lora.networks.base import Layer, Modifier
from lib_lora.networks.bias import Bias, UpBias
from lib_lora.networks.boft import Boft
from lib_lora.networks.dora import Dora
from lib_lora.networks.full import Full
from lib_lora.networks.glora import GLoRA
from lib_lora.networks.ia3 import Ia3, PeftIa3
from lib_lora.networks.loha import LoHa
from lib_lora.networks.lokr import LoKr
from lib_lora.networks.lora import Lora
from lib_lora.networks.norm import Norm
from lib_lora.networks.oft import Oft, OftDiag
from lib_lora.networks.peft_oft import PeftBoft, PeftOft, PeftOftBlocks
from lib_lora.networks.scalar import Scalar
from lib_lora.networks.set_weight import SetBias, SetWeight
from lib_lora.networks.sparse import SparseRest
from lib_lora.networks.tlora import TLora


def ordered(*types: type[Layer]) -> tuple[type[Layer], ...]:
    """The types in order of detection. Raises ValueError if two claim one kind."""
    kinds = [cls.kind for cls in types]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(f"two network types are called {kind!r}; give one of them another kind")
    return types


TYPES = ordered(
    Lora,
    LoHa,
    LoKr,
    GLoRA,
    Ia3,
    PeftIa3,
    Full,
    Norm,
    SetWeight,
    Oft,
    Boft,
    OftDiag,
    PeftOft,
    PeftOftBlocks,
    PeftBoft,
    TLora,
)
# From the outermost inwards: a modifier takes its own tensors and goes round the layer that the others describe.
# Biases outermost; DoRA, which norms the changed weight, goes round whatever else makes up that change.
MODIFIERS: tuple[type[Modifier], ...] = (
    Bias,
    SetBias,
    UpBias,
    Dora,
    SparseRest,
    Scalar,
)


def detect(names: Iterable[str]) -> type[Layer] | None:
    """The type these tensor names (without layer prefix) belong to, modifiers' names left aside, or None."""
    given = frozenset(names).difference(*(m.NAMES for m in MODIFIERS))
    return next((cls for cls in TYPES if cls.matches(given)), None)


def build(tensors: Mapping[str, Tensor]) -> Layer | None:
    """The layer that these tensors (names without layer prefix) describe, modifiers included; None if of no type.

    Raises ShapeMismatch if their shapes contradict each other.
    """
    for position, modifier in enumerate(MODIFIERS):
        own = {name: tensor for name, tensor in tensors.items() if name in modifier.NAMES}
        if own:
            return _modified(tensors, own, position)
    kind = next((cls for cls in TYPES if cls.matches(frozenset(tensors))), None)
    return kind.from_tensors(tensors) if kind is not None else None


def _modified(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], position: int) -> Layer | None:
    rest = {name: tensor for name, tensor in tensors.items() if name not in own}
    core = build(rest) if rest.keys() - {"alpha"} else None
    if core is None and rest.keys() - {"alpha"}:
        return None
    return MODIFIERS[position].wrap(core, own)


def by_kind(kind: str) -> type[Layer]:
    """The type called `kind`. Raises BadConfig listing the known ones."""
    for cls in TYPES:
        if cls.kind == kind:
            return cls
    raise BadConfig(f"unknown network type {kind!r}; choose one of: {', '.join(cls.kind for cls in TYPES)}")
