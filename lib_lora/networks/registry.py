"""The ordered tuple of network types. A new type is one file and one line here."""

from __future__ import annotations

from collections.abc import Iterable

from lib_lora.errors import BadConfig
from lib_lora.networks.base import Layer
from lib_lora.networks.lora import Lora


def ordered(*types: type[Layer]) -> tuple[type[Layer], ...]:
    """The types in order of detection. Raises ValueError if two claim one kind."""
    kinds = [cls.kind for cls in types]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(f"two network types are called {kind!r}; give one of them another kind")
    return types


TYPES = ordered(
    Lora,
)


def detect(names: Iterable[str]) -> type[Layer] | None:
    """The type these tensor names (without layer prefix) belong to, or None."""
    given = frozenset(names)
    return next((cls for cls in TYPES if cls.matches(given)), None)


def by_kind(kind: str) -> type[Layer]:
    """The type called `kind`. Raises BadConfig listing the known ones."""
    for cls in TYPES:
        if cls.kind == kind:
            return cls
    raise BadConfig(f"unknown network type {kind!r}; choose one of: {', '.join(cls.kind for cls in TYPES)}")
