"""Named block weights and named element rules: the well-known ones, and the user's text files."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lib_lora.errors import BadFile
from lib_lora.prompt.blocks import FLUX_IDS, LAYOUTS, parse_vector
from lib_lora.prompt.elements import Rule, parse_rules

# What lora-block-weight calls its files; a folder may hold both.
WEIGHTS_FILE, ELEMENTS_FILE = "lbwpresets.txt", "elempresets.txt"
# Slots of SD_TRANSFORMERS: BASE, six blocks in, the middle, nine blocks out.
_SWITCHES = {
    "NONE": "00000000000000000",
    "ALL": "11111111111111111",
    "INS": "11110000000000000",
    "IND": "10001110000000000",
    "INALL": "11111110000000000",
    "MIDD": "10001111111100000",
    "OUTD": "10000000111100000",
    "OUTS": "10000000000011111",
    "OUTALL": "10000000111111111",
}
_RULES = {
    "ATTNDEEPON": "IN05-OUT05:attn:1",
    "ATTNDEEPOFF": "IN05-OUT05:attn:0",
    "PROJDEEPOFF": "IN05-OUT05:proj:0",
    "XYZ": "::1",
}


def _usual_weights() -> dict[str, str]:
    weights = {name: ",".join(switches) for name, switches in _SWITCHES.items()}
    return {**weights, "ALL0.5": ",".join(["0.5"] * 17), "FLUXALL": ",".join(["1"] * len(FLUX_IDS))}


def _usual_elements() -> dict[str, tuple[Rule, ...]]:
    return {name: parse_rules(text) for name, text in _RULES.items()}


@dataclass(frozen=True)
class Presets:
    """What `lbw=NAME` and `lbwe=NAME` mean. `skipped`: lines of files that are no preset, and why; comments are not.

    Weights stay text: what X stands for is only known in the tag.
    """

    weights: Mapping[str, str] = field(default_factory=_usual_weights)
    elements: Mapping[str, tuple[Rule, ...]] = field(default_factory=_usual_elements)
    skipped: tuple[str, ...] = ()

    @classmethod
    def load(cls, *places: str | Path) -> Presets:
        """The usual presets and those of files; a later one of the same name counts.

        A place is a file of block weights, or a folder with `lbwpresets.txt` and `elempresets.txt`, both optional. A
        line `NAME:1,0,...` is a preset of block weights, a line with # a comment. Element presets are divided by
        blank lines: `NAME:blocks:elements:ratio`, further rules after commas or on further lines.
        Raises BadFile if a file is there but cannot be read.
        """
        weights, elements = _usual_weights(), _usual_elements()
        skipped: list[str] = []
        for place in map(Path, places):
            weights_file = place / WEIGHTS_FILE if place.is_dir() else place
            _read_weights(weights_file, weights, skipped)
            if place.is_dir():
                _read_elements(place / ELEMENTS_FILE, elements, skipped)
        return cls(weights, elements, tuple(skipped))

    def alike(self, name: str) -> str:
        """Names for someone who wrote `name`: the similar ones, else all."""
        known = [*self.weights, *self.elements]
        return ", ".join(difflib.get_close_matches(name, known) or known)


def _read_weights(file: Path, found: dict[str, str], skipped: list[str]) -> None:
    for number, line in enumerate(_text(file).split("\n"), 1):
        name, colon, vector = (part.strip() for part in line.partition(":"))
        if not line.strip() or "#" in line:
            continue
        if not colon or not name or vector.count(",") + 1 not in LAYOUTS:
            skipped.append(f"{file.name}, line {number}: {line.strip()!r} is not NAME:weight,weight,...")
            continue
        try:
            parse_vector(vector)
        except ValueError as error:
            skipped.append(f"{file.name}, line {number}: {error}")
        else:
            found[name] = vector


def _read_elements(file: Path, found: dict[str, tuple[Rule, ...]], skipped: list[str]) -> None:
    for entry in _entries(_text(file)):
        name, _, rules = (part.strip() for part in entry.partition(":"))
        try:
            if not name:
                raise ValueError("a preset without a name")
            found[name] = parse_rules(rules)
        except ValueError as error:
            skipped.append(f"{file.name}, {name!r}: {error}")


def _entries(text: str) -> Iterator[str]:
    lines = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("#"))
    yield from filter(None, (entry.strip() for entry in re.split(r"\n\s*\n", lines)))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"the presets in {file} cannot be read ({error}); save it as plain text in UTF-8") from error
