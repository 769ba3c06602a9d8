"""What each picture shows, in words: .txt beside it, metadata.jsonl, trigger and class, or the file name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lib_lora.errors import BadDataset
from lib_lora.train.config import Data
from lib_lora.train.images import Skipped, list_pictures, readable

METADATA = "metadata.jsonl"
_REPEATS = re.compile(r"^(\d+)_(.*)$")


@dataclass(frozen=True)
class Item:
    """A picture to train on: its file, its caption, its visits per epoch."""

    path: Path
    caption: str
    repeats: int = 1


@dataclass(frozen=True)
class Dataset:
    """Everything a job trains on, and what had to be left out."""

    items: tuple[Item, ...]
    skipped: tuple[Skipped, ...] = ()

    def visits(self) -> list[int]:
        """Indices of `items`, each as often as it is visited in one epoch."""
        return [index for index, item in enumerate(self.items) for _ in range(item.repeats)]


@dataclass(frozen=True)
class _Source:
    folder: Path
    repeats: int
    phrase: str  # what to say where nothing else does


def read_dataset(data: Data) -> Dataset:
    """The pictures and captions of `data`. Raises BadDataset if not one picture can be used."""
    items: list[Item] = []
    skipped: list[Skipped] = []
    try:
        for source in _sources(data):
            good, bad = readable(list_pictures(source.folder))
            skipped += bad
            table = read_metadata(source.folder) if data.captions in ("auto", "metadata") else {}
            items += [Item(path, _caption(path, source, data, table), source.repeats) for path in good]
    except OSError as error:
        raise BadDataset(f"data.folder = {data.folder!r} cannot be read ({error}); check its permissions") from error
    if not items:
        tail = f" ({len(skipped)} unreadable, first: {skipped[0].reason})" if skipped else ""
        raise BadDataset(
            f"data.folder = {data.folder!r} holds no usable picture{tail}; put .png, .jpg, .webp or .bmp files there"
        )
    return Dataset(tuple(items), tuple(skipped))


def fill(template: str, data: Data) -> str:
    """`template` with {trigger} and {class} put in, spaces tidied."""
    text = template.replace("{trigger}", data.trigger).replace("{class}", data.class_word)
    return " ".join(text.split())


def clean_name(stem: str) -> str:
    """A file name as words: separators become spaces, a leading or trailing number goes."""
    words = re.sub(r"[\s_\-.]+", " ", stem).strip()
    tidy = re.sub(r"^\d+\s+|\s*\(?\d+\)?$", "", words).strip()
    return tidy or words


def read_metadata(folder: Path) -> Mapping[str, str]:
    """{"file name": "caption"} of the folder's metadata.jsonl, empty without one. Raises BadDataset for a bad line."""
    path = folder / METADATA
    if not path.is_file():
        return {}
    table: dict[str, str] = {}
    for number, line in enumerate(_read_text(path).split("\n"), start=1):  # U+2028 may stand within a line of JSON
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"]
            if not (isinstance(name, str) and isinstance(text, str)):
                raise TypeError("file_name and text are not both text")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadDataset(
                f'{str(path)!r} line {number} is {line[:80]!r} ({error}); write {{"file_name": ..., "text": ...}}'
            ) from None
        table[name] = text
    return table


def _sources(data: Data) -> list[_Source]:
    """The folder itself, or its sub-folders named 'N_words' if it has any."""
    if not data.folder:
        raise BadDataset("data.folder = '' names no pictures; give the folder that holds them")
    folder = Path(os.path.expanduser(data.folder))
    phrase = fill(data.template, data)
    if os.path.isdir(folder):
        named = [(path, _REPEATS.match(path.name)) for path in sorted(folder.iterdir()) if path.is_dir()]
        subs = [_Source(path, int(m[1]), phrase or clean_name(m[2])) for path, m in named if m and int(m[1]) > 0]
        if subs:
            return subs + ([_Source(folder, data.repeats, phrase)] if list_pictures(folder) else [])
    match = _REPEATS.match(folder.name)
    if match and not phrase:
        phrase = clean_name(match[2])
    repeats = int(match[1]) if match and data.repeats == 1 and int(match[1]) > 0 else data.repeats
    return [_Source(folder, repeats, phrase)]


def _caption(path: Path, source: _Source, data: Data, table: Mapping[str, str]) -> str:
    beside = path.with_suffix(".txt")
    found = {
        "txt": _read_text(beside) if data.captions in ("auto", "txt") and beside.is_file() else "",
        "metadata": table.get(path.name, ""),
        "trigger": source.phrase,
        "filename": clean_name(path.stem),
    }
    if data.captions == "auto":
        return next(filter(None, (fill(found[kind], data) for kind in found)), "")
    caption = fill(found[data.captions], data)
    if not caption and data.captions in ("txt", "metadata"):
        where = beside.name if data.captions == "txt" else METADATA
        raise BadDataset(
            f"picture {str(path)!r} has no caption in {where} (data.captions = {data.captions!r}); "
            "write one, or set data.captions = 'auto'"
        )
    return caption


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadDataset(f"caption {str(path)!r} is not UTF-8 ({error}); save it as UTF-8") from None
