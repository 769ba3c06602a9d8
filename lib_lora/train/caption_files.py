"""Captions as people keep them: text files in any encoding, and the tables of other trainers."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lib_lora.errors import BadDataset

METADATA = "metadata.jsonl"
TEXT_ENDINGS = (".txt", ".caption")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_TEXT_COLUMNS = ("text", "caption", "prompt")


@dataclass
class CaptionFiles:
    """The caption files of one folder. `guessed` lists those whose encoding had to be guessed, and as what."""

    folder: Path
    use_tables: bool = True
    guessed: list[tuple[Path, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._table: Mapping[str, str] = self._read_tables() if self.use_tables else {}

    def beside(self, picture: Path) -> tuple[str, ...]:
        """The lines of the caption file of a picture, empty ones left out; () without one. Raises BadDataset."""
        for ending in TEXT_ENDINGS:
            path = picture.with_suffix(ending)
            if path.is_file():
                return lines_of(self._text(path))
        return ()

    def in_table(self, picture: Path) -> tuple[str, ...]:
        """The lines of a picture's caption in a table."""
        return lines_of(self._table.get(picture.name) or self._table.get(picture.stem) or "")

    def _text(self, path: Path) -> str:
        text, guess = decode(path.read_bytes())
        if guess:
            self.guessed.append((path, guess))
        return text

    def _read_tables(self) -> Mapping[str, str]:
        """{"file name or stem": "caption"} of every table in the folder; metadata.jsonl has the last word."""
        table: dict[str, str] = {}
        for path in sorted(self.folder.glob("meta*.json")):
            table |= _kohya(path, self._text(path))
        for path in (self.folder / "metadata.csv", self.folder / METADATA):
            if path.is_file():
                read = _csv_rows if path.suffix == ".csv" else _json_rows
                for where, row in read(path, self._text(path)):
                    name, text = _entry(path, where, row)
                    table[name] = text
        return table


def decode(data: bytes) -> tuple[str, str]:
    """Text of bytes in the encoding they show, and the name of that encoding if it is a guess ("" if it is sure).

    Byte order marks and UTF-8 are sure. Else pairs of high bytes are Chinese (GB 18030), zeros at every other place
    UTF-16, anything else is Western (cp1252).
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data.decode(encoding, errors="replace"), ""
    if b"\0" in data and len(data) % 2 == 0:
        encoding = "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
        return data.decode(encoding, errors="replace"), encoding
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError:
        pass
    if all(len(run) % 2 == 0 for run in re.findall(rb"[\x80-\xff]+", data)):
        try:
            data.decode("gb2312")
            return data.decode("gb18030"), "gb18030"
        except UnicodeDecodeError:
            pass
    try:
        return data.decode("cp1252"), "cp1252"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "latin-1"


def lines_of(text: str) -> tuple[str, ...]:
    """The lines that say something; only line feeds and carriage returns end a line."""
    return tuple(line.strip() for line in re.split(r"[\r\n]+", text) if line.strip())


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), start=1):  # U+2028 may stand within a line of JSON
        if not line.strip():
            continue
        try:
            yield f"line {number} is {line[:80]!r}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad(path, f"line {number} is {line[:80]!r}", error) from None


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, object]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise _bad(path, f"line {reader.line_num}", error) from None


def _entry(path: Path, where: str, row: object) -> tuple[str, str]:
    """File name and caption of a row, as in an imagefolder's metadata. Raises BadDataset."""
    columns = row if isinstance(row, Mapping) else {}
    name = columns.get("file_name")
    text = next((columns[column] for column in _TEXT_COLUMNS if column in columns), None)
    if not (isinstance(name, str) and isinstance(text, str)):
        raise _bad(path, where, "file_name and text are not both text")
    return name.replace("\\", "/").removeprefix("./"), text


def _bad(path: Path, where: str, error: Exception | str) -> BadDataset:
    return BadDataset(f'{str(path)!r} {where} ({error}); write {{"file_name": ..., "text": ...}}')


def _kohya(path: Path, text: str) -> dict[str, str]:
    """The captions of kohya's meta json, {"path or stem": {"caption": ..., "tags": ...}}; {} for any other json."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadDataset(f"{str(path)!r} is not JSON ({error}); mend or remove it") from None
    table: dict[str, str] = {}
    for key, about in content.items() if isinstance(content, dict) else ():
        if isinstance(about, dict):
            words = [about.get(name) for name in ("caption", "tags")]
            caption = ", ".join(word for word in words if isinstance(word, str) and word)
            if caption:
                table[re.split(r"[\\/]", key)[-1]] = caption
    return table
