"""The folders of network files: what is there, and which file a name means."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_lora.errors import BadFile, NetworkNotFound
from lib_lora.files.tensors import read_header

SUFFIX = ".safetensors"
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Entry:
    """One file. `name` is its stem, `relative` its path inside the library without suffix, with `/`; times in ns.

    `changed` is the time of the file's entry itself: it tells a copy that brought its old mtime along.
    """

    path: Path
    name: str
    relative: str
    mtime: int
    size: int
    changed: int = 0

    @property
    def stamp(self) -> Stamp:
        """What tells one state of the file from another."""
        return self.mtime, self.size, self.changed


class NetworkLibrary:
    """Files under some folders, sub-folders included. An object without global state; not thread-safe.

    Look-ups notice new, removed and overwritten files by themselves.
    """

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self.folders = tuple(Path(folder) for folder in folders)
        self._entries: list[Entry] = []
        self._folder_times: dict[Path, int] | None = None  # None: not scanned yet
        self._aliases: dict[Path, tuple[Stamp, str]] = {}

    def scan(self) -> list[Entry]:
        """Read the folders anew: every file, by relative path. Earlier folders hide equal paths in later ones."""
        times: dict[Path, int] = {}
        found: dict[str, Entry] = {}
        for root in self.folders:
            for path in sorted(_walk(root, times)):
                entry = _entry(root, path)
                if entry is not None:
                    found.setdefault(entry.relative, entry)
        self._entries, self._folder_times = list(found.values()), times
        return list(self._entries)

    def entries(self) -> list[Entry]:
        """Every file, rescanned if a folder changed."""
        return self.scan() if self._changed() else list(self._entries)

    def names(self) -> list[str]:
        """What to write in a tag for each file: its name, or its relative path where two have that name."""
        entries = self.entries()
        times = Counter(entry.name for entry in entries)
        return sorted(e.name if times[e.name] == 1 else e.relative for e in entries)

    def find(self, name: str) -> Entry:
        """The file `name` means: a relative path without suffix, a file name, or a file's own `ss_output_name`.

        Its mtime and size are those of this moment. Raises NetworkNotFound if there is none, or several.
        """
        wanted = name.replace("\\", "/").removesuffix(SUFFIX)
        if not wanted:  # would be the alias of every file that has none
            raise NetworkNotFound(f"{name!r} names no network; write the name of a file")
        match = self._match(wanted, self.entries())
        if match is None:
            # A folder's time can be too coarse to show a file written just now.
            match = self._match(wanted, self.scan())
        if match is None:
            raise NetworkNotFound(self._missing(name))
        return match

    def _match(self, wanted: str, entries: list[Entry]) -> Entry | None:
        tests = (lambda e: e.relative == wanted, lambda e: e.name == wanted, lambda e: self._alias(e) == wanted)
        for test in tests:
            hits = [entry for entry in entries if test(entry)]
            if len(hits) > 1:
                raise NetworkNotFound(
                    f"{wanted!r} means {len(hits)} files; write one of: {', '.join(hit.relative for hit in hits)}"
                )
            if hits:
                return _fresh(hits[0])
        return None

    def _alias(self, entry: Entry) -> str:
        """The name the file was trained under, read once per version of the file; "" if it tells none."""
        stamp = entry.stamp
        known = self._aliases.get(entry.path)
        if known is None or known[0] != stamp:
            try:
                alias = read_header(entry.path).metadata.get("ss_output_name", "")
            except BadFile:
                alias = ""  # a broken file has no alias; asked for by its own name it tells its fault
            known = self._aliases[entry.path] = (stamp, alias)
        return known[1]

    def _changed(self) -> bool:
        return self._folder_times is None or any(_mtime(f) != time for f, time in self._folder_times.items())

    def _missing(self, name: str) -> str:
        close = difflib.get_close_matches(name, [e.name for e in self._entries], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "put the file there, or check the name"
        places = ", ".join(map(str, self.folders)) or "no folder"
        return f"no network {name!r} among {len(self._entries)} files in {places}; {hint}"


def _walk(root: Path, times: dict[Path, int]) -> Iterator[Path]:
    """Files under `root`; folder times are noted in `times`. Links are followed, but no folder is entered twice."""
    seen: set[str] = set()
    times[root] = _mtime(root)  # also when it does not exist yet
    for folder, below, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        times[Path(folder)] = _mtime(Path(folder))
        below.sort()
        yield from (Path(folder, file) for file in files if file.endswith(SUFFIX) and not file.startswith("."))


def _entry(root: Path, path: Path) -> Entry | None:
    try:
        stat = path.stat()
    except OSError:
        return None  # a dangling link, or deleted since the folder was listed
    relative = path.relative_to(root).as_posix().removesuffix(SUFFIX)
    return Entry(path, path.name.removesuffix(SUFFIX), relative, stat.st_mtime_ns, stat.st_size, stat.st_ctime_ns)


def _fresh(entry: Entry) -> Entry | None:
    try:
        stat = entry.path.stat()
    except OSError:
        return None
    return Entry(entry.path, entry.name, entry.relative, stat.st_mtime_ns, stat.st_size, stat.st_ctime_ns)


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
