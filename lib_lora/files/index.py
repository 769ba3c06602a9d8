"""What is known of every network file: headlines and hashes, kept on disk by path, times and size."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lib_lora.errors import BadFile
from lib_lora.files.hashes import Hashes
from lib_lora.files.headline import Headline, read_headline
from lib_lora.files.tensors import atomic_file

log = logging.getLogger(__name__)

Stamp = tuple[int, int, int]  # mtime, size, change time
_FORMAT = 1  # of the file on disk; a file of another one is made anew
_TYPES = [int, int, int, str, str, str, int, str, str, str, str]  # of a row: stamp, headline, hashes
_FIELDS = tuple(f.name for f in dataclasses.fields(Headline))


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one state of a file. `hashes` is None until somebody has read all of it."""

    headline: Headline = field(default_factory=Headline)
    hashes: Hashes | None = None

    @property
    def hash(self) -> str:
        """The hash that the webui goes by: as the metadata state it, else computed; "" while it is not known."""
        return self.headline.stated_hash or (self.hashes.data if self.hashes is not None else "")

    @property
    def short_hash(self) -> str:
        """As it stands in the infotext of a picture: the first 12 digits."""
        return self.hash[:12]

    def has_hash(self, digits: str) -> bool:
        """Whether one of its hashes begins with these digits."""
        known = (self.hash, *((self.hashes.data, self.hashes.whole) if self.hashes is not None else ()))
        return any(hash.startswith(digits) for hash in known)


class Index:
    """Facts by file and state. Safe to use from several threads; a look-up never waits for a file to be read.

    `cache` is the file it is kept in between runs; None: nowhere. A cache that cannot be read is made anew, one that
    cannot be written costs a warning.
    """

    def __init__(self, cache: str | Path | None = None) -> None:
        self.cache = Path(cache) if cache is not None else None
        self._lock = threading.Lock()  # held for moments only
        self._saving = threading.Lock()
        self._changes = 0
        self._saved = 0
        self._known: dict[str, tuple[Stamp, Facts]] = self._load()

    def known(self, path: str | Path, stamp: Stamp) -> Facts | None:
        """The facts of this state of the file if they are known. A dict look-up."""
        entry = self._known.get(str(path))
        return entry[1] if entry is not None and entry[0] == stamp else None

    def read(self, path: str | Path, stamp: Stamp) -> Facts:
        """The facts of this state of the file; reads its header if they are not known."""
        facts = self.known(path, stamp)
        if facts is None:
            facts = Facts(read_headline(path))
            self._put(path, stamp, facts)
        return facts

    def add_hashes(self, path: str | Path, stamp: Stamp, hashes: Hashes) -> None:
        """Keep the hashes of this state of the file."""
        self._put(path, stamp, dataclasses.replace(self.read(path, stamp), hashes=hashes))

    def save(self, present: Iterable[str | Path] | None = None) -> None:
        """Write the cache if something is new; with `present`, files that are no longer there are forgotten."""
        with self._lock:
            if present is not None:
                keep = {str(path) for path in present}
                gone = [path for path in self._known if path not in keep]
                for path in gone:
                    del self._known[path]
                self._changes += bool(gone)
            changes, content = self._changes, dict(self._known)
        if self.cache is None or changes == self._saved:
            return
        rows = {path: [*stamp, *_row(facts)] for path, (stamp, facts) in content.items()}
        text = json.dumps({"format": _FORMAT, "files": rows}, separators=(",", ":"))
        with self._saving:
            try:
                with atomic_file(self.cache) as file:
                    file.write(text.encode("ascii"))
            except BadFile as error:
                log.warning("the list of networks is not kept: %s", error)
            self._saved = changes

    def _put(self, path: str | Path, stamp: Stamp, facts: Facts) -> None:
        with self._lock:
            self._known[str(path)] = stamp, facts
            self._changes += 1

    def _load(self) -> dict[str, tuple[Stamp, Facts]]:
        if self.cache is None:
            return {}
        try:
            content = json.loads(self.cache.read_text("utf-8"))
            if content["format"] != _FORMAT:
                return {}
            return {path: _unrow(row) for path, row in content["files"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.warning("%s is damaged (%s); the list of networks is made anew", self.cache, error)
            return {}


def _row(facts: Facts) -> list[object]:
    headline = [getattr(facts.headline, name) for name in _FIELDS]
    return [*headline, *((facts.hashes.data, facts.hashes.whole) if facts.hashes is not None else ("", ""))]


def _unrow(row: list[object]) -> tuple[Stamp, Facts]:
    """Raises ValueError for a row that `_row` did not make."""
    if list(map(type, row)) != _TYPES:  # at once: there are thousands of rows
        raise ValueError(f"a row of it is of other types: {row!r:.80}")
    mtime, size, changed, alias, version, kind, layers, stated, fault, data, whole = row
    headline = Headline(alias, version, kind, layers, stated, fault)  # type: ignore[arg-type]
    hashes = Hashes(data, whole) if data and whole else None  # type: ignore[arg-type]
    return (mtime, size, changed), Facts(headline, hashes)  # type: ignore[return-value]
