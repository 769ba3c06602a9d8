"""The files under some folders, listed again only where a folder changed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin")  # of equal names the earlier one counts
_SETTLED = 2_000_000_000  # ns: file systems' clocks tick up to so slowly
Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """One file. `name` is its stem, `relative` its path inside the library without suffix, with `/`; times in ns.

    `changed` is the time of the file's entry itself: it tells a copy that brought its old mtime along.
    """

    file: str
    name: str
    relative: str
    mtime: int
    size: int
    changed: int = 0

    @property
    def path(self) -> Path:
        """`file` as a path. Made when asked for: twelve thousand would take longer than listing their folders."""
        return Path(self.file)

    @property
    def suffix(self) -> str:
        """The file's suffix as it is written."""
        return self.file[self.file.rindex(".") :]

    @property
    def stamp(self) -> Stamp:
        """What tells one state of the file from another."""
        return self.mtime, self.size, self.changed


@dataclass
class _Folder:
    """A folder as it was listed last; `mtime` is None for one that does not exist (yet)."""

    mtime: int | None
    identity: object
    settled: bool
    files: list[Entry]
    below: list[str]


class Folders:
    """Remembers listings. Links are followed, but no folder is entered twice; hidden files and folders are left out."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(roots)
        self._listed: dict[tuple[Path, str], _Folder] = {}

    def changed(self) -> bool:
        """Whether a folder changed since the last listing, or may have: one look at each folder."""
        if not self._listed:
            return True
        return any(not f.settled or _stat(path)[0] != f.mtime for (_, path), f in self._listed.items())

    def files(self, everywhere: bool = False) -> list[Entry]:
        """Every file, folder by folder, listing what changed since the last time, or with `everywhere` all anew."""
        before = {} if everywhere else self._listed
        self._listed = {}
        seen: set[object] = set()
        return [entry for root in self.roots for entry in self._walk(root, str(root), before, seen)]

    def _walk(
        self, root: Path, path: str, before: dict[tuple[Path, str], _Folder], seen: set[object]
    ) -> Iterator[Entry]:
        waiting = [path]
        while waiting:
            path = waiting.pop()
            mtime, identity = _stat(path)
            if identity in seen:
                continue
            seen.add(identity)
            folder = before.get((root, path))
            if folder is None or not folder.settled or (folder.mtime, folder.identity) != (mtime, identity):
                folder = _list(root, path, mtime, identity)
            self._listed[root, path] = folder
            yield from folder.files
            waiting += reversed(folder.below)


def fresh(entry: Entry) -> Entry | None:
    """The entry with the file's times and size of this moment; None if the file is gone."""
    try:
        about = os.stat(entry.file)
    except OSError:
        return None
    return Entry(entry.file, entry.name, entry.relative, about.st_mtime_ns, about.st_size, about.st_ctime_ns)


def suffix_of(name: str) -> str:
    """The suffix of a network file's name as it is written there, "" if it is none."""
    suffix = os.path.splitext(name)[1]
    return suffix if suffix.lower() in SUFFIXES else ""


def _list(root: Path, path: str, mtime: int | None, identity: object) -> _Folder:
    if mtime is None:
        return _Folder(mtime, identity, True, [], [])
    folder = _Folder(mtime, identity, time.time_ns() - mtime > _SETTLED, [], [])
    within = os.path.relpath(path, root).replace(os.sep, "/")
    prefix = "" if within == "." else f"{within}/"
    try:
        with os.scandir(path) as found:
            items = sorted((item for item in found if not item.name.startswith(".")), key=lambda item: item.name)
    except OSError as error:
        log.warning("the folder %s cannot be listed (%s); its networks are missing", path, error.strerror or error)
        return folder
    names = {item.name for item in items}
    for item in items:
        suffix = suffix_of(item.name)
        try:
            if item.is_dir():
                folder.below.append(item.path)
            elif suffix and item.is_file() and not _second_half(item.name, names):
                about = item.stat()
                stem = item.name[: -len(suffix)]
                times = about.st_mtime_ns, about.st_size, about.st_ctime_ns
                folder.files.append(Entry(item.path, stem, prefix + stem, *times))
        except OSError:
            continue  # a link that leads nowhere or round in circles, or deleted since the folder was listed
    return folder


def _second_half(name: str, names: set[str]) -> bool:
    """cloneofsimo's text encoder file belongs to the one beside it."""
    return name.endswith(".text_encoder.pt") and name.removesuffix(".text_encoder.pt") + ".pt" in names


def _stat(path: str) -> tuple[int | None, object]:
    """A folder's mtime (None if there is none) and what tells it from others, by whatever path one came."""
    try:
        about = os.stat(path)
    except OSError:
        return None, path
    return about.st_mtime_ns, (about.st_dev, about.st_ino) if about.st_ino else os.path.realpath(path)
