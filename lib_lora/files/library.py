"""The folders of network files: what is there, and which file a name means."""

from __future__ import annotations

import difflib
import os
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from lib_lora.errors import NetworkNotFound
from lib_lora.files.folders import SUFFIXES, Entry, Folders, Stamp, fresh, suffix_of
from lib_lora.files.index import Facts, Index

__all__ = ["Entry", "NetworkLibrary", "Stamp"]
# Looks at every folder may take this share of all time, and between two of them may lie so many seconds.
_SHARE, _LONGEST = 0.02, 2.0
Table = dict[str, tuple[Entry, ...]]


@dataclass(frozen=True)
class _Listing:
    """The files at one moment. `shown` leaves out what an earlier folder or a better suffix hides."""

    files: list[Entry]
    shown: tuple[Entry, ...] = ()
    by_path: dict[str, Entry] = field(default_factory=dict)
    by_name: Table = field(default_factory=dict)

    @classmethod
    def of(cls, files: list[Entry]) -> _Listing:
        best: dict[str, Entry] = {}
        for entry in files:
            rival = best.setdefault(entry.relative, entry)
            if rival is not entry and _beside(rival, entry) and _rank(entry) < _rank(rival):
                best[entry.relative] = entry
        shown = tuple(best[relative] for relative in sorted(best))
        whole: dict[str, Entry] = {}
        for entry in files:
            whole.setdefault(entry.relative + entry.suffix, entry)
        names = ((entry.name, entry) for entry in shown)
        whole_names = ((entry.name + entry.suffix, entry) for entry in whole.values())
        return cls(files, shown, {**whole, **best}, _table(chain(names, whole_names)))

    def called(self, wanted: str) -> tuple[Entry, ...]:
        """What a relative path or a file name means, with or without suffix."""
        entry = self.by_path.get(wanted)
        return (entry,) if entry is not None else self.by_name.get(wanted, ())


class NetworkLibrary:
    """Files under some folders, sub-folders included. An object without global state, safe to use from any thread.

    Look-ups notice new, removed and overwritten files by themselves. What was read of the headers is kept in the file
    `cache` between runs; without one it lives as long as the object.
    """

    def __init__(self, folders: Sequence[str | Path], cache: str | Path | None = None) -> None:
        self.folders = tuple(Path(folder) for folder in folders)
        self.index = Index(cache)
        self._folders = Folders(self.folders)
        self._scanning = threading.Lock()  # round listing folders
        self._reading = threading.Lock()  # round reading headers, which can take seconds at the very first time
        self._listing = _Listing([])
        self._aliases: tuple[_Listing, Table] = self._listing, {}
        self._looked, self._cost = float("-inf"), 0.0  # at the folders: when, and how many seconds that took

    def scan(self) -> list[Entry]:
        """Read the folders anew: every file, by relative path. Earlier folders hide equal paths in later ones."""
        return list(self._scanned().shown)

    def entries(self) -> list[Entry]:
        """Every file, by relative path; folders that changed are read anew, files' headers are not."""
        return list(self._current().shown)

    def names(self) -> list[str]:
        """What to write in a tag for each file: its name, or its relative path where two have that name."""
        entries = self.entries()
        times = Counter(entry.name for entry in entries)
        return sorted(e.name if times[e.name] == 1 else e.relative for e in entries)

    def facts(self, entry: Entry) -> Facts:
        """What the file tells about itself; its header is read if this state of it was not met before."""
        return self.index.read(entry.file, entry.stamp)

    def by_hash(self, digits: str) -> list[Entry]:
        """The files of which a known hash begins with these digits (8 or more)."""
        wanted = digits.lower()
        if len(wanted) < 8:
            return []
        known = ((entry, self.index.known(entry.file, entry.stamp)) for entry in self.entries())
        return [entry for entry, facts in known if facts is not None and facts.has_hash(wanted)]

    def find(self, name: str) -> Entry:
        """The file `name` means: a relative path, a file name, or a file's own `ss_output_name`, in this order.

        The suffix may be left out. Where nothing is called so, upper and lower case count as equal. Mtime and size are
        those of this moment. Raises NetworkNotFound if there is none, or several.
        """
        wanted = name.replace("\\", "/")
        if not wanted.removesuffix(suffix_of(wanted)):  # would be the alias of every file that has none
            raise NetworkNotFound(f"{name!r} names no network; write the name of a file")
        found = self._named(self._recent(), wanted)
        # A folder's time can be too coarse to show a file written just now, so the last look is at all files.
        for look in (self._current, self._scanned):
            if found is None:
                found = self._named(look(), wanted, read=True)
        if found is None:
            found = self._folded(self._listing, wanted)
        if found is None:
            raise NetworkNotFound(self._missing(name))
        return found

    def _named(self, listing: _Listing, wanted: str, read: bool = False) -> Entry | None:
        """By path, name or alias; without `read` only by aliases that are known already."""
        entry = _only(wanted, listing.called(wanted))
        if entry is not None:
            return fresh(entry)
        held, known = self._aliases
        aliases = known if held is listing else self._aliased(listing) if read else {}
        entry = _only(wanted, aliases.get(wanted, ()))
        now = fresh(entry) if entry is not None else None
        return now if now == entry else None  # overwritten: it may tell another alias by now

    def _folded(self, listing: _Listing, wanted: str) -> Entry | None:
        paths = {path: (entry,) for path, entry in listing.by_path.items()}
        for table in (paths, listing.by_name, self._aliased(listing)):
            hits = [entry for key, entries in table.items() if _fold(key) == _fold(wanted) for entry in entries]
            entry = _only(wanted, tuple(dict.fromkeys(hits)))
            if entry is not None:
                return fresh(entry)
        return None

    def _recent(self) -> _Listing:
        """What was listed, after a look at the folders unless that was done just now."""
        due = min(self._cost / _SHARE, _LONGEST)
        return self._listing if time.monotonic() - self._looked < due else self._current()

    def _current(self) -> _Listing:
        with self._scanning:
            start = time.monotonic()
            changed = self._folders.changed()
            self._cost = time.monotonic() - start
            return self._take(self._folders.files()) if changed else self._take(self._listing.files)

    def _scanned(self) -> _Listing:
        with self._scanning:
            return self._take(self._folders.files(everywhere=True))

    def _take(self, files: list[Entry]) -> _Listing:
        if files is not self._listing.files and files != self._listing.files:
            self._listing = _Listing.of(files)
        self._looked = time.monotonic()
        return self._listing

    def _aliased(self, listing: _Listing) -> Table:
        """Files by the names they were trained under: of files not met before the headers are read."""
        with self._reading:
            if self._aliases[0] is not listing:
                known = ((self.facts(entry).headline.alias, entry) for entry in listing.shown)
                self._aliases = listing, _table((alias, entry) for alias, entry in known if alias)
                self.index.save(entry.file for entry in listing.files)
            return self._aliases[1]

    def _missing(self, name: str) -> str:
        entries = self._listing.shown
        close = difflib.get_close_matches(name, [e.name for e in entries], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "put the file there, or check the name"
        places = ", ".join(map(str, self.folders)) or "no folder"
        return f"no network {name!r} among {len(entries)} files in {places}; {hint}"


def _only(wanted: str, hits: Sequence[Entry]) -> Entry | None:
    if len(hits) > 1:
        raise NetworkNotFound(
            f"{wanted!r} means {len(hits)} files; write one of: {', '.join(hit.relative for hit in hits)}"
        )
    return hits[0] if hits else None


def _table(named: Iterable[tuple[str, Entry]]) -> Table:
    table: dict[str, tuple[Entry, ...]] = {}
    for name, entry in named:
        others = table.get(name)
        table[name] = (entry,) if others is None else (*others, entry)
    return table


def _beside(a: Entry, b: Entry) -> bool:
    return os.path.dirname(a.file) == os.path.dirname(b.file)


def _rank(entry: Entry) -> int:
    return SUFFIXES.index(entry.suffix.lower())


def _fold(name: str) -> str:
    """Names that people and file systems take for one: by case, and by how letters with accents are put together."""
    return unicodedata.normalize("NFC", name.casefold())
