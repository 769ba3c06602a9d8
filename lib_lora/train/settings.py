"""How one setting is declared and checked: type, default, bounds and help in one place."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any

from lib_lora.errors import BadConfig


def setting(default: Any, help: str, **bounds: Any) -> Any:
    """A dataclass field with its one-line `help`; bounds are `low`, `high`, `multiple` (numbers) and `choices`."""
    return dataclasses.field(default=default, metadata={"help": help, **bounds})


@dataclass(frozen=True)
class Setting:
    """The declaration of one setting, from which widgets, TOML, checks and docs are made.

    `type` is bool, int, float, str or tuple (of str). `optional` settings may also be None, which TOML
    writes by leaving the line out. `multiple` = n asks for whole multiples of n.
    """

    section: str
    name: str
    type: type
    default: Any
    help: str
    optional: bool = False
    low: float | None = None
    high: float | None = None
    multiple: int | None = None
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """`section.name`, as errors and `--set` write it."""
        return f"{self.section}.{self.name}"

    def accepted(self) -> str:
        """What values are accepted, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        noun = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list of texts"}
        words = noun[self.type]
        if self.multiple:
            words = f"a multiple of {self.multiple}"
        if self.low is not None and self.high is not None:
            words += f" from {self.low:g} to {self.high:g}"
        elif self.low is not None:
            words += f" of at least {self.low:g}"
        return words + (" (or left out)" if self.optional else "")

    def check(self, value: Any) -> Any:
        """The value in the setting's own type. Raises BadConfig if it is of another type or out of range."""
        if value is None and self.optional:
            return None
        if self.type is float and type(value) is int:
            value = float(value) if abs(value) < 2**1000 else math.inf
        if self.type is tuple:
            right_type = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
            value = tuple(value) if right_type else value
        else:
            right_type = type(value) is self.type
        if not right_type or not self._in_range(value):
            raise BadConfig(f"{self.key} = {value!r} is not accepted; give {self.accepted()}")
        return value

    def _in_range(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.type is str and not _is_text(value):
            return False
        if self.type is tuple and not all(_is_text(item) for item in value):
            return False
        if self.type not in (int, float):
            return True
        inside = (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
        return inside and math.isfinite(value) and (not self.multiple or value % self.multiple == 0)

    def parse(self, text: str) -> Any:
        """The checked value of a text as typed on a command line (lists: JSON, or one text alone)."""
        if self.type is str:
            return self.check(text)
        if self.optional and text.strip() in ("", "none"):
            return None
        if self.type is tuple and not text.lstrip().startswith("["):
            return self.check((text,) if text else ())
        try:
            return self.check(json.loads(text))
        except (ValueError, RecursionError):  # not JSON, or a number or nesting beyond Python's limits
            raise BadConfig(f"{self.key} = {text!r} is not accepted; give {self.accepted()}") from None


def _is_text(value: str) -> bool:
    """False for what neither a path nor a UTF-8 file can hold: NUL and halves of surrogate pairs."""
    return not any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in value)


@cache
def settings_of(section: str, cls: Any) -> tuple[Setting, ...]:
    """The settings a section's dataclass declares, in their order."""
    hints = typing.get_type_hints(cls)
    found = []
    for item in dataclasses.fields(cls):
        kinds = [kind for kind in typing.get_args(hints[item.name]) if kind is not type(None)]
        optional = len(kinds) < len(typing.get_args(hints[item.name]))
        base = kinds[0] if optional else typing.get_origin(hints[item.name]) or hints[item.name]
        found.append(Setting(section, item.name, base, item.default, optional=optional, **item.metadata))
    return tuple(found)
