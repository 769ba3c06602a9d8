"""Captions that are uploaded with their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lib_lora.errors import BadDataset
from lib_lora.train.caption_files import TEXT_ENDINGS

MAX_TEXT = 1 << 16  # bytes of a caption


def is_text(name: str) -> bool:
    """Whether a file of this name is a caption."""
    return name.lower().endswith(TEXT_ENDINGS)


def save_caption(path: Path, pictures: Sequence[Path]) -> int:
    """Put a caption beside every one of its pictures that has none; how many. Raises BadDataset with why not."""
    bare = [one for one in pictures if not any(one.with_suffix(ending).exists() for ending in TEXT_ENDINGS)]
    if not bare:
        raise BadDataset("its picture has a caption already" if pictures else "no picture of this name")
    data, count = _text(path), 0
    for picture in bare:
        with suppress(FileExistsError), picture.with_suffix(TEXT_ENDINGS[0]).open("xb") as file:
            file.write(data)
            count += 1
    return count


def _text(path: Path) -> bytes:
    """A caption's content, in UTF-8. Raises BadDataset."""
    if path.stat().st_size > MAX_TEXT:
        raise BadDataset("a caption larger than 64 KiB")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadDataset("not in UTF-8; save the text anew in that encoding") from None
    if "\0" in text:
        raise BadDataset("not a text")
    return text.encode("utf-8")
