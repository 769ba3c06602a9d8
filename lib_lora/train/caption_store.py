"""The captions of a folder on disk: read, written with a backup of what was there before, and brought back."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lib_lora.errors import BadDataset
from lib_lora.files.tensors import atomic_file
from lib_lora.train.caption_files import TEXT_ENDINGS, CaptionFiles
from lib_lora.train.captions import sources
from lib_lora.train.images import list_pictures
from lib_lora.train.sections_data import Data

BACKUPS = ".captions-backup"
MANIFEST = "manifest.json"
UNDONE = "-undone"
_NUMBERED = re.compile(r"(\d{6,7})-\d{8}-")
LONGEST = 20_000  # signs of one caption


@dataclass(frozen=True)
class Caption:
    """A picture's caption. `kept_in`: "txt" (a file beside it), "table" (metadata.jsonl and others), "" (none)."""

    picture: Path
    text: str
    kept_in: str


@dataclass(frozen=True)
class Undone:
    """What came of an undo: the operation's name, files brought back, and those left as they are, changed since."""

    what: str
    files: int
    left: tuple[str, ...] = ()


def read_captions(folder: Path) -> list[Caption]:
    """Every picture of a folder, and of its sub-folders 'N_words', with its caption. Raises BadDataset."""
    with _told(folder):
        return [caption for source in sources(Data(folder=str(folder))) for caption in _of(source.folder)]


class Rewriting:
    """One operation that writes captions one after another, `undo` takes all of them back at once.

    What a file was before is first copied to `.captions-backup/<number>-<time>` in `folder`, with a list of what was
    done (`what`). Each file is written whole or not at all, in UTF-8.
    """

    def __init__(self, folder: Path, what: str) -> None:
        self.folder = folder
        self.what = what
        self._backup: Path | None = None
        self._entries: list[dict[str, str | None]] = []

    def write(self, files: Mapping[Path, bytes]) -> int:
        """Write caption files {path: content}; how many of them that changed. Raises BadDataset."""
        with _told(self.folder):
            wanted = {path: data for path, data in files.items() if _bytes(path) != data}
            if not wanted:
                return 0
            self._backup = self._backup or _new_backup(self.folder)
            for path, data in wanted.items():
                self._entries.append(self._entry(path, data, self._backup))
            _write_json(self._backup / MANIFEST, {"what": self.what, "files": self._entries})
            for path, data in wanted.items():
                with atomic_file(path) as file:
                    file.write(data)
            return len(wanted)

    def _entry(self, path: Path, data: bytes, backup: Path) -> dict[str, str | None]:
        old, kept = _bytes(path), f"{len(self._entries):05d}.txt"
        if old is not None:
            with atomic_file(backup / kept) as file:
                file.write(old)
        name = path.relative_to(self.folder).as_posix()
        return {"file": name, "was": kept if old is not None else None, "is": _digest(data)}


def come_back(texts: Mapping[Path, str]) -> list[Path]:
    """The pictures of {picture: text} whose caption would be empty and is in a table: that one would count again."""
    emptied = {path.parent for path, text in texts.items() if not text.strip()}
    tables = {folder: CaptionFiles(folder) for folder in emptied}
    return [picture for picture, text in texts.items() if not text.strip() and tables[picture.parent].in_table(picture)]


def require_lasting(texts: Mapping[Path, str]) -> None:
    """Raises BadDataset for captions that would be empty and come back out of a table."""
    found = come_back(texts)
    if found:
        raise BadDataset(
            f"of {len(found)} captions nothing would be left, {found[0].name!r} first, and what a table says would "
            "count again; take them out of that table, or leave a word"
        )


def write_captions(folder: Path, texts: Mapping[Path, str], what: str) -> int:
    """Write captions {picture: text} below `folder` as one operation (see Rewriting); the number of files changed.

    A caption in a table gets a file of its own, which has the first word when captions are read. Raises BadDataset,
    with nothing written if two pictures share one file and shall have different captions, or if a text is too long.
    """
    return Rewriting(folder, what).write(caption_files(texts))


def last_operation(folder: Path) -> str:
    """What `undo` would take back, for people; "" if there is nothing."""
    backup = _last_backup(folder)
    return str(_manifest(backup)["what"]) if backup is not None else ""


def undo(folder: Path) -> Undone:
    """Bring back what the last write changed. Raises BadDataset if there is nothing to bring back.

    A file that somebody changed since is left as it is. The backup itself stays.
    """
    backup = _last_backup(folder)
    if backup is None:
        raise BadDataset(f"no change of captions in {str(folder)!r} is left to take back")
    manifest, left, count = _manifest(backup), [], 0
    with _told(folder):
        for entry in manifest["files"]:
            path, now = folder / entry["file"], _bytes(folder / entry["file"])
            if now is None or _digest(now) != entry["is"]:
                left.append(path.name)
                continue
            with atomic_file(backup / f"after-{count:05d}.txt") as file:  # in case the undoing was the mistake
                file.write(now)
            if entry["was"] is None:
                path.unlink()
            else:
                with atomic_file(path) as file:
                    file.write((backup / entry["was"]).read_bytes())
            count += 1
        os.rename(backup, backup.with_name(backup.name + UNDONE))
    return Undone(str(manifest["what"]), count, tuple(left))


def _of(folder: Path) -> Iterator[Caption]:
    files = CaptionFiles(folder)
    for path in list_pictures(folder):
        beside, table = files.beside(path), files.in_table(path)
        yield Caption(path, "\n".join(beside or table), "txt" if beside else "table" if table else "")


def caption_files(texts: Mapping[Path, str]) -> dict[Path, bytes]:
    """{caption file: its new content}. Raises BadDataset."""
    found: dict[Path, bytes] = {}
    for picture, text in texts.items():
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if sum(map(len, lines)) > LONGEST:
            raise BadDataset(f"the caption of {picture.name!r} has more than {LONGEST} letters; shorten it")
        path = next((p for end in TEXT_ENDINGS if (p := picture.with_suffix(end)).is_file()), None)
        path, data = path or picture.with_suffix(TEXT_ENDINGS[0]), "\n".join(lines).encode("utf-8", errors="replace")
        if found.setdefault(path, data) != data:
            raise BadDataset(f"two pictures share the caption file {path.name!r}; rename one of them first")
    return found


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _new_backup(folder: Path) -> Path:
    """A folder of its own with a number above all others: a clock may go back."""
    home, stamp = folder / BACKUPS, datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    home.mkdir(parents=True, exist_ok=True)
    number = max((_age(path)[0] for path in home.iterdir()), default=0) + 1
    backup = home / f"{number:06d}-{stamp}"
    backup.mkdir()
    return backup


def _age(backup: Path) -> tuple[int, str]:
    """What backups are ordered by: their number; those of before it was written begin with a date."""
    numbered = _NUMBERED.match(backup.name)
    return (int(numbered[1]) if numbered else 0, backup.name)


def _last_backup(folder: Path) -> Path | None:
    try:
        found = sorted((path for path in (folder / BACKUPS).iterdir() if not path.name.endswith(UNDONE)), key=_age)
    except OSError:
        return None
    return next((path for path in reversed(found) if _manifest(path)), None)


def _manifest(backup: Path) -> Mapping[str, Any]:
    """What was done; {} if it cannot be read, or names files elsewhere."""
    try:
        content = json.loads((backup / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    files = content.get("files") if isinstance(content, dict) else None
    sound = isinstance(files, list) and isinstance(content.get("what"), str) and all(_sound(entry) for entry in files)
    return content if sound else {}


def _sound(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("file"), str) or not isinstance(entry.get("is"), str):
        return False
    path, was = Path(entry["file"]), entry.get("was")
    inside = not path.is_absolute() and ".." not in path.parts and path.suffix in TEXT_ENDINGS
    return inside and (was is None or (isinstance(was, str) and Path(was).name == was))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8"))


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadDataset(f"captions in {str(folder)!r} cannot be changed ({error}); check its permissions") from error


def changes(captions: Sequence[Caption], after: Sequence[str]) -> list[tuple[Caption, str]]:
    """The captions that differ from what they become, in their order."""
    return [(one, text) for one, text in zip(captions, after, strict=True) if one.text != text]
