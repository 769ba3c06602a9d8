"""Presets of the user's own, saved by name: one TOML file each, in a folder of the page's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_lora.errors import BadConfig
from lib_lora.files.tensors import atomic_file
from lib_lora.train.config import CONCEPT, SECTIONS, fields, find, make_job, values_of
from lib_lora.train.presets import PRESETS
from lib_lora.train.toml import dump_toml, read_toml

ENDING = ".toml"
LONGEST = 60  # characters of a name
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # which Windows keeps for itself
FORBIDDEN = '/\\:*?"<>|'
# What belongs to one network and one machine, not to a way of training.
PERSONAL = frozenset(
    {
        *("data.folder", "data.trigger", "data.class_word", "data.mask_folder", "data.cache_folder", "prior.folder"),
        *("output.name", "output.folder", "output.network_folder", "output.embedding_folder"),
        *("output.hypernetwork_folder", "output.checkpoint_folder", "base.checkpoint", "network.continue_from"),
        *("method.pairs_after", "prior.prompt", "output.sample_prompts"),
    }
)


class PresetStore:
    """The presets in `folder`, which is made when the first one is saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """All names, sorted; also those of files that cannot be read."""
        found = self.folder.glob(f"*{ENDING}") if self.folder.is_dir() else ()
        return sorted((path.stem for path in found if not path.name.startswith(".")), key=str.casefold)

    def load(self, name: str) -> dict[str, Any]:
        """The settings of a preset, checked. Raises BadConfig if there is none, or its file is damaged."""
        path = self._path(self._existing(name))
        try:
            values = values_of(read_toml(path), repr(str(path)))
            if CONCEPT in values:
                raise BadConfig(f"{str(path)!r} has a [[{CONCEPT}]] table, which no preset has; take it out")
            make_job(values)
        except BadConfig as error:
            raise BadConfig(f"preset {name!r} cannot be used: {error} (its file is left as it is)") from None
        left_out = {item.key: None for item in fields() if item.optional and item.key not in PERSONAL}
        return {**left_out, **{find(key).key: find(key).check(value) for key, value in values.items()}}

    def save(self, name: str, settings: Mapping[str, Any], replace: bool = False) -> str:
        """Save settings under a name; the name as it is stored. What is personal or unknown here is left out.

        Raises BadConfig for a name that cannot be a file's, that is a built-in preset's or, without `replace`, that is
        taken; BadFile if it cannot be written.
        """
        name = checked_name(name)
        if name.casefold() in {own.casefold() for own in PRESETS}:
            raise BadConfig(f"preset {name!r} comes with the program and stays as it is; choose another name")
        taken = self._taken(name)
        if taken and not replace:
            raise BadConfig(f"there is a preset {taken!r} already; choose another name, or replace it")
        tables: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for key, value in settings.items():
            if key not in PERSONAL and key.partition(".")[0] in SECTIONS:
                item = find(key)
                tables[item.section][item.name] = item.check(value)
        with atomic_file(self._path(taken or name)) as file:
            file.write(dump_toml({section: table for section, table in tables.items() if table}).encode())
        return taken or name

    def delete(self, name: str) -> None:
        """Delete a preset. Raises BadConfig if there is none."""
        path = self._path(self._existing(name))
        try:
            path.unlink()
        except OSError as error:
            raise BadConfig(f"preset {name!r} cannot be deleted ({error})") from error

    def _existing(self, name: str) -> str:
        if name not in self.names():  # a listing decides, never a joined path
            raise BadConfig(f"there is no preset {name!r} of yours; choose one of {', '.join(self.names()) or 'none'}")
        return name

    def _taken(self, name: str) -> str:
        """The name under which it is stored already, in whatever case; "" if it is not."""
        return next((own for own in self.names() if own.casefold() == name.casefold()), "")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{ENDING}"


def checked_name(text: str) -> str:
    """A name as a file can have it. Raises BadConfig."""
    name = " ".join(text.split())
    bad = [sign for sign in name if sign in FORBIDDEN or not sign.isprintable()]
    if not name or bad or len(name) > LONGEST or name.strip(". ") != name or DEVICES.fullmatch(name):
        raise BadConfig(
            f"{text[:LONGEST]!r} cannot be a preset's name; give up to {LONGEST} letters, digits, spaces and - _ , ."
        )
    return name
