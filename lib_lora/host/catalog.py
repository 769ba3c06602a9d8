"""The network files as the webui speaks of them: a name for tags, an alias, a hash, the version of the base model."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib_lora.errors import BadFile, NetworkNotFound
from lib_lora.files.folders import Entry
from lib_lora.files.hashes import file_hashes
from lib_lora.files.library import NetworkLibrary
from lib_lora.files.tensors import read_header
from lib_lora.host.builtin import BuiltinLora
from lib_lora.host.detect import Webui
from lib_lora.keys import versions

log = logging.getLogger(__name__)

CACHE = "safetensors-metadata"  # the webui's own, which the built-in fills as well
HASHES, WHOLE_HASHES = "hashes-addnet", "hashes"  # likewise: without a safetensors header, and of whole files
UNKNOWN = "Unknown"
VERSIONS = {versions.SD1: "SD1", versions.SD2: "SD2", versions.SDXL: "SDXL", versions.UNKNOWN: UNKNOWN}
FIRST = ("ss_sd_model_name", "ss_resolution", "ss_clip_skip", "ss_num_train_images", "ss_tag_frequency")


@dataclass(frozen=True)
class Card:
    """One file. `name` is what a tag says, `hash` "" while nobody computed it.

    `version` is SD1, SD2, SDXL, Unknown, or another model's title.
    """

    name: str
    path: Path
    alias: str
    hash: str = ""
    version: str = UNKNOWN
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The card as `/sdapi/v1/loras` answers."""
        return {"name": self.name, "alias": self.alias, "path": str(self.path), "metadata": dict(self.metadata)}


class Catalog:
    """What is in the library, in the webui's terms."""

    def __init__(self, webui: Webui, builtin: BuiltinLora, library: NetworkLibrary) -> None:
        self.webui = webui
        self.builtin = builtin
        self.library = library

    def cards(self) -> list[Card]:
        """Every file, by relative path."""
        entries = self.library.entries()
        times = Counter(entry.name for entry in entries)
        return [self._card(entry, entry.name if times[entry.name] == 1 else entry.relative) for entry in entries]

    def card(self, name: str) -> Card | None:
        """The file that a tag's name means, or None."""
        entry = self._find(name)
        return self._card(entry, self.name(entry)) if entry is not None else None

    def name(self, entry: Entry) -> str:
        """What to write in a tag for a file: its name, or its relative path where two have that name."""
        return entry.name if self._alone(entry) else entry.relative

    def _alone(self, entry: Entry) -> bool:
        """Whether no other file has its name."""
        return sum(other.name == entry.name for other in self.library.entries()) <= 1

    def preferred_name(self, card: Card) -> str:
        """The name a click writes: the alias if the setting asks for it and it means this file, else the file's."""
        if getattr(self.webui.shared.opts, "lora_preferred_name", "") == "Filename" or card.alias == card.name:
            return card.name
        meant = self._find(card.alias)
        return card.alias if meant is not None and meant.path == card.path else card.name

    def short_hash(self, name: str) -> str:
        """The hash that infotext carries for the file `name` means; computed if need be, "" where it cannot be."""
        entry = self._find(name)
        if entry is None:
            return ""
        facts = self.library.facts(entry)
        if not facts.hash and not getattr(self.webui.shared.cmd_opts, "no_hashing", False):
            try:
                self.library.index.add_hashes(entry.file, entry.stamp, file_hashes(entry.path))
            except BadFile as error:
                log.warning("no hash in infotext: %s", error)
            facts = self.library.facts(entry)
        if facts.hash and not facts.headline.stated_hash and self._alone(entry):
            self._share(entry, facts.hash)
        return facts.short_hash

    def _share(self, entry: Entry, digest: str) -> None:
        """Keep a computed hash where the webui has its own, so that nobody computes it again.

        And so that this table is not empty: the webui 1.10 opens an empty one anew for each file that the built-in
        lists, which is seconds for thousands of files. It goes by names, so only those that one file has are kept.
        """
        cache = self.webui.cache
        table = cache.cache(HASHES if entry.path.suffix.lower() == ".safetensors" else WHOLE_HASHES)
        title, row = f"lora/{entry.name}", {"mtime": os.path.getmtime(entry.file), "sha256": digest}
        if table.get(title) != row:
            table[title] = row
            cache.dump_cache()

    def name_of(self, short_hash: str, asked: str) -> str | None:
        """A name for the file with this hash: `asked` itself if it is one, else one called alike, else any, or None."""
        if self.short_hash(asked) == short_hash:
            return asked
        stem = asked.rpartition("/")[2]
        hits = sorted(self.library.by_hash(short_hash), key=lambda entry: entry.name != stem)
        return self.name(hits[0]) if hits else None

    def rescan(self) -> None:
        """See new files, everywhere."""
        self.library.scan()
        self.builtin.rescan()

    def _find(self, name: str) -> Entry | None:
        try:
            return self.library.find(name)
        except NetworkNotFound:  # none, or several
            return None

    def _card(self, entry: Entry, name: str) -> Card:
        facts = self.library.facts(entry)
        told = facts.headline.version
        version = VERSIONS.get(told) or versions.title(told)
        return Card(name, entry.path, facts.headline.alias or name, facts.hash, version, self._metadata(entry, name))

    def _metadata(self, entry: Entry, name: str) -> Mapping[str, Any]:
        """The file's metadata, those first that people look for; empty where it cannot be read: its tag tells why."""

        def read() -> dict[str, Any]:
            try:
                return dict(_parsed(read_header(entry.path).metadata))
            except BadFile:
                return {}

        try:
            found = self.webui.cache.cached_data_for_file(CACHE, f"lora/{name}", str(entry.path), read) or {}
        except OSError:  # gone since the folder was listed
            return {}
        return {key: found[key] for key in sorted(found, key=lambda k: FIRST.index(k) if k in FIRST else len(FIRST))}


def _parsed(metadata: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """As the webui keeps them: nested ones as objects."""
    for key, value in metadata.items():
        if value.startswith("{"):
            try:
                yield key, json.loads(value)
                continue
            except (ValueError, RecursionError):
                pass
        yield key, value
