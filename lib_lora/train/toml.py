"""TOML in and out: the reader Python has, and a writer for the plain values a job is made of."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_lora.errors import BadConfig

# The standard library's from Python 3.11 on; pip has one; the webui's toml misreads some quotes and escapes
READERS = ("tomllib", "tomli", "pip._vendor.tomli", "toml")
DEEPEST = 64  # parts of a dotted name; a job needs two


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises BadConfig if it is missing or not TOML."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadConfig(f"job file {str(path)!r} does not exist; give the path of a .toml file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"job file {str(path)!r} cannot be read ({error}); give the path of a .toml file") from None
    return parse_toml(text, repr(str(path)))


def parse_toml(text: str, what: str) -> dict[str, Any]:
    """The tables of a text. Raises BadConfig, calling the text `what`, if it is not TOML."""
    if _deepest(text) > DEEPEST:  # readers take time that grows with the square of such a name
        raise BadConfig(f"{what} is not a job: it has a name of more than {DEEPEST} parts; correct that line")
    try:
        return dict(_reader().loads(text))
    except (ValueError, RecursionError) as error:
        raise BadConfig(f"{what} is not valid TOML: {error}; correct that line") from None


def dump_toml(tables: Mapping[str, Mapping[str, Any] | Sequence[Mapping[str, Any]]]) -> str:
    """Tables of plain values as TOML, lists of tables as [[name]]; None is left out."""
    parts = []
    for name, given in tables.items():
        heading, members = (f"[{name}]", [given]) if isinstance(given, Mapping) else (f"[[{name}]]", given)
        for table in members:
            lines = [f"{key} = {_value(value)}" for key, value in table.items() if value is not None]
            parts.append("\n".join([heading, *lines]) + "\n")
    return "\n".join(parts)


def _deepest(text: str) -> int:
    """The most dots that stand together in what may be a name."""
    return max(part.count(".") for part in re.split(r"[\n,=\[\]{}]+", re.sub(r"[ \t]+", "", text)))


def _reader() -> Any:
    for name in READERS:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise BadConfig("no TOML reader among " + ", ".join(READERS) + "; install one with: pip install tomli")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, except that TOML also forbids a bare DEL and pairs of surrogates
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return repr(value)
