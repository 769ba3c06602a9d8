"""A folder of pictures as a set that grows and shrinks without anything getting lost: uploads in, rejects put aside."""

from __future__ import annotations

import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from lib_lora.errors import BadDataset
from lib_lora.files.tensors import atomic_file
from lib_lora.train.caption_files import TEXT_ENDINGS
from lib_lora.train.images import BROKEN, MASK_ENDING, SUFFIXES
from lib_lora.train.upload_captions import is_text, save_caption

REMOVED = ".removed"
JOURNAL = "journal.json"
TAKEN = ".taken"
TOO_MANY = "more than 200 files at once"
MAX_FILES = 200  # at once
MAX_IN_SET = 2000
MAX_SETS = 500  # folders of uploads
MAX_BYTES = 64 << 20  # of one file
MAX_TOTAL = 2 << 30  # of one set
MAX_PIXELS = 120_000_000
SPARE = 1 << 30  # bytes that stay free on the disk
FORMATS: Mapping[str, str] = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "BMP": ".bmp"} | {
    "GIF": ".gif",
    "TIFF": ".tif",
    "AVIF": ".avif",
}
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


@dataclass
class Saved:
    """What came of an upload: the new pictures, how many captions, and what was refused by name with the reason."""

    folder: Path
    files: list[Path] = field(default_factory=list)
    captions: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)


def new_folder(home: Path, day: date) -> Path:
    """A new folder below `home` for a set, named by the day; it is there then, for whoever asked alone.

    Raises BadDataset if there are `MAX_SETS` already, or it cannot be made.
    """
    with _told(home):
        home.mkdir(parents=True, exist_ok=True)
        if sum(path.is_dir() for path in home.iterdir()) >= MAX_SETS:
            raise BadDataset(f"there are {MAX_SETS} folders of pictures in {str(home)!r}; delete some of them first")
        names = (f"{day:%Y-%m-%d}" + (f"-{number}" if number > 1 else "") for number in range(1, MAX_SETS + 2))
        for name in names:
            with suppress(FileExistsError):
                (home / name).mkdir()
                return home / name
    raise BadDataset(f"no folder can be made in {str(home)!r}; delete some of those there first")


def save_uploads(files: Sequence[tuple[Path, str]], folder: Path) -> Saved:
    """Copy uploaded pictures (path, name it was given) into `folder`, which is made if need be.

    Each is decoded first, as one of FORMATS and within the limits; it gets a name of letters, digits, - and _ with the
    ending of its format. Captions (.txt, in UTF-8) go with the pictures of their name, of this upload or of before. No
    file is overwritten. Raises BadDataset if the folder cannot be written.
    """
    saved = Saved(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = _sizes(folder)
        count, total = len(there), sum(there.values())
        called = _stems(path for path in there if path.suffix.lower() in SUFFIXES)
        pictures, came = [one for one in files if not is_text(one[1])], dict[str, list[Path]]()
        for place, (path, name) in enumerate(pictures):
            reason = TOO_MANY if place >= MAX_FILES else _full(path, folder, count, total)
            ending, reason = ("", reason) if reason else _kind(path)
            if reason:
                saved.refused.append((name, reason))
                continue
            saved.files.append(_copy(path, folder, safe_stem(name), ending))
            count, total = count + 1, total + path.stat().st_size
            for stems, stem in ((called, safe_stem(name)), (came, _stem(name))):
                stems.setdefault(stem, []).append(saved.files[-1])
        for place, (path, name) in enumerate(one for one in files if is_text(one[1])):
            try:
                if place >= MAX_FILES:
                    raise BadDataset(TOO_MANY)
                # the picture it came with goes before one of before, or one called nearly so
                saved.captions += save_caption(path, came.get(_stem(name)) or called.get(safe_stem(name), []))
            except BadDataset as refused:
                saved.refused.append((name, str(refused)))
    except OSError as error:
        raise BadDataset(f"cannot save pictures in {str(folder)!r} ({error}); free some space") from error
    return saved


def _stem(name: str) -> str:
    """A given name without folders and ending."""
    last = re.split(r"[\\/]", name)[-1]
    return last.rpartition(".")[0] or last


def _stems(pictures: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in pictures:
        found.setdefault(path.stem, []).append(path)
    return found


def _sizes(folder: Path) -> dict[Path, int]:
    """The files of a folder and their bytes, without what another upload takes away at this moment."""
    found = {}
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            found.update({path: path.stat().st_size} if path.is_file() else {})
    return found


def safe_stem(name: str) -> str:
    """A file name without its ending, as letters (of any script), digits, - and _; never empty, no device's name."""
    words = re.sub(r"[^\w-]+", "-", unicodedata.normalize("NFC", _stem(name))).strip("-_")[:80]
    words = words.removesuffix(MASK_ENDING)
    return words if words and words.lower() not in _RESERVED else f"picture-{words}".rstrip("-")


def remove(picture: Path) -> None:
    """Put a picture aside, with its captions and its mask, into the sub-folder `.removed`.

    Raises BadDataset if it is not there or cannot be moved.
    """
    aside = picture.parent / REMOVED
    with _told(picture):
        if not picture.is_file():
            raise BadDataset(f"there is no picture {picture.name!r} any more; show the folder again")
        aside.mkdir(exist_ok=True)
        moved: dict[str, str] = {}
        for path in _belongings(picture):
            moved[path.name] = _free(aside / path.name).name
        _write_journal(aside, [*_journal(aside), {"picture": picture.name, "moved": moved}])
        for name, there in moved.items():
            os.rename(picture.parent / name, aside / there)


def put_back(folder: Path) -> str:
    """Bring back what was removed last from this folder, the picture's name; "" if nothing is aside.

    Raises BadDataset if another file has taken its place or it cannot be moved.
    """
    aside = folder / REMOVED
    with _told(folder):
        while entries := _journal(aside):
            entry = entries[-1]
            moved: Mapping[str, str] = entry["moved"]
            here = {name: there for name, there in moved.items() if (aside / there).is_file()}
            taken = [name for name in here if (folder / name).exists()]
            if taken:
                raise BadDataset(f"{taken[0]!r} is in the folder again; rename it, then bring the removed one back")
            for name, there in here.items():
                os.rename(aside / there, folder / name)
            _write_journal(aside, entries[:-1])
            if here:
                return str(entry["picture"])
        return ""


def removed_count(folder: Path) -> int:
    """How many pictures of this folder can be brought back."""
    aside = folder / REMOVED
    return sum((aside / entry["moved"].get(entry["picture"], "")).is_file() for entry in _journal(aside))


def _full(path: Path, folder: Path, count: int, total: int) -> str:
    """Why no further file, or not this one, is taken; "" if it is."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        return "larger than 64 MiB"
    if count >= MAX_IN_SET:
        return "the set has 2000 files already"
    if total + size > MAX_TOTAL:
        return "the set would be larger than 2 GiB"
    return "the disk is full" if shutil.disk_usage(folder).free < size + SPARE else ""


def _kind(path: Path) -> tuple[str, str]:
    """The ending for a picture's format; or "" and why it is refused."""
    from PIL import Image

    try:
        with Image.open(path, formats=[name for name in FORMATS if name in _readable()]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return "", "more than 120 million pixels"
            ending = FORMATS[picture.format or ""]
            picture.load()
    except (*BROKEN, Image.DecompressionBombError):
        return "", "not a picture, or broken"
    return ending, ""


def _readable() -> set[str]:
    from PIL import Image

    Image.init()
    return set(Image.OPEN)


def _copy(path: Path, folder: Path, stem: str, ending: str) -> Path:
    """Copy under a name that nothing in the folder has, with any ending: captions go by the stem."""
    for number in range(1, 100000):
        name = stem if number == 1 else f"{stem}-{number}"
        with _reserved(folder, name) as free:
            if free:
                target = folder / f"{name}{ending}"
                with path.open("rb") as source, atomic_file(target) as file:
                    shutil.copyfileobj(source, file)
                return target
    raise BadDataset(f"there are too many pictures {stem!r} in {str(folder)!r}; rename some")


@contextmanager
def _reserved(folder: Path, name: str) -> Iterator[bool]:
    """Whether a stem is free; in here it is for nobody else, another process included."""
    mark = folder / f".{name.lower()}{TAKEN}"
    try:
        mark.open("xb").close()
    except FileExistsError:  # somebody takes it at this moment
        yield False
        return
    try:
        yield name.lower() not in {there.stem.lower() for there in folder.iterdir()}
    finally:
        mark.unlink(missing_ok=True)


def _belongings(picture: Path) -> Iterator[Path]:
    """The picture, its caption files unless another picture has the same, and its mask."""
    yield picture
    others = [
        path
        for path in picture.parent.glob(glob_of(picture.stem) + ".*")
        if path != picture and path.suffix.lower() in SUFFIXES
    ]
    if not others:
        yield from (path for ending in TEXT_ENDINGS if (path := picture.with_suffix(ending)).is_file())
        yield from picture.parent.glob(glob_of(picture.stem + MASK_ENDING) + ".*")


def glob_of(name: str) -> str:
    """A name as a pattern that finds nothing else."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _free(path: Path) -> Path:
    names = (path if number == 1 else path.with_stem(f"{path.stem}-{number}") for number in range(1, 100000))
    return next(name for name in names if not name.exists())


def _journal(aside: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads((aside / JOURNAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [entry for entry in entries if _sound(entry)] if isinstance(entries, list) else []


def _sound(entry: object) -> bool:
    """Whether an entry names files of these two folders and nothing else."""
    if not isinstance(entry, dict) or not isinstance(entry.get("moved"), dict):
        return False
    names = [entry.get("picture"), *entry["moved"], *entry["moved"].values()]
    return all(isinstance(name, str) and name and Path(name).name == name for name in names)


def _write_journal(aside: Path, entries: Sequence[object]) -> None:
    with atomic_file(aside / JOURNAL) as file:
        file.write(json.dumps(entries, ensure_ascii=False, indent=1).encode("utf-8"))


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadDataset(f"{str(path)!r} cannot be changed ({error}); check its permissions") from error
