"""The zip container of torch.save: where each record lies. Nothing is unpacked, so there is nothing to blow up.

torch stores its records uncompressed, and only those are read: a record is a place in the file. Names are keys of a
dict and never become paths. Format: PKWARE's APPNOTE, sections 4.3.7, 4.3.12 to 4.3.16 and 4.5.3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from lib_lora.files.header import Fault, read_exactly, short

MAX_DIRECTORY = 32 << 20  # torch writes about 80 bytes a record
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_ALL16, _ALL32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True)
class Record:
    """One record: where its local header begins, and how many bytes its data has."""

    name: str
    header: int
    length: int


def records(file: BinaryIO, size: int) -> dict[str, Record]:
    """The records of a torch zip by name without the archive's folder: "data.pkl", "data/0", ... Raises Fault."""
    start, length = _directory(file, size)
    if length > MAX_DIRECTORY or start + length > size:
        raise Fault(f"its zip directory claims {length} bytes at {start} of the file's {size}")
    found: dict[str, Record] = {}
    for record in _entries(read_exactly(file, start, length)):
        _, slash, name = record.name.partition("/")
        if not slash:
            raise Fault(f"its zip record {short(record.name)} is in no folder; torch.save writes one")
        if record.header + record.length > start:
            raise Fault(f"its zip record {short(record.name)} claims {record.length} bytes, more than there are")
        if name in found:
            raise Fault(f"its zip record {short(name)} is there twice")
        found[name] = record
    if sum(r.length for r in found.values()) > start:
        raise Fault("its zip records overlap, so that they unpack to more than the file holds")
    return found


def data_start(file: BinaryIO, record: Record) -> int:
    """Where a record's data begin. Raises Fault if they leave no room."""
    fields = _LOCAL.unpack(read_exactly(file, record.header, _LOCAL.size))
    if fields[0] != b"PK\x03\x04":
        raise Fault(f"its zip record {short(record.name)} is not where the directory says")
    return record.header + _LOCAL.size + int(fields[9]) + int(fields[10])


def _directory(file: BinaryIO, size: int) -> tuple[int, int]:
    """Offset and length of the central directory."""
    tail = min(size, 22 + _ALL16)
    raw = bytes(read_exactly(file, size - tail, tail))
    at = raw.rfind(_END)
    if at < 0 or len(raw) - at < 22:
        raise Fault("its zip directory is missing: the file is cut off")
    (length, start) = struct.unpack_from("<2I", raw, at + 12)
    if _ALL32 not in (length, start) and struct.unpack_from("<H", raw, at + 10)[0] != _ALL16:
        return start, length
    locator = size - tail + at - 20
    if locator < 0:
        raise Fault("its zip64 directory is missing: the file is cut off")
    magic, _, place, _ = struct.unpack("<4sIQI", read_exactly(file, locator, 20))
    if magic != _LOCATOR64:
        return start, length
    if place + 56 > size:
        raise Fault(f"its zip64 directory claims to be at {place} of the file's {size}")
    end = bytes(read_exactly(file, place, 56))
    if not end.startswith(_END64):
        raise Fault("its zip64 directory is missing: the file is damaged")
    length, start = struct.unpack_from("<2Q", end, 40)
    return start, length


def _entries(raw: bytearray) -> Iterator[Record]:
    position = 0
    while position < len(raw):
        if len(raw) - position < _ENTRY.size:
            raise Fault("its zip directory is cut off")
        fields = _ENTRY.unpack_from(raw, position)
        flags, method, packed, length = fields[3], fields[4], fields[8], fields[9]
        after_name = position + _ENTRY.size + fields[10]
        name = raw[position + _ENTRY.size : after_name].decode("utf-8", "replace")
        position = after_name + fields[11] + fields[12]
        if fields[0] != b"PK\x01\x02" or position > len(raw):
            raise Fault("its zip directory is damaged")
        if method != 0 or flags & 1:
            raise Fault(f"its zip record {short(name)} is compressed or encrypted, which torch.save never does")
        extra = bytes(raw[after_name : after_name + fields[11]])
        length, packed, header = _wide(extra, [length, packed, fields[16]])
        if packed != length:
            raise Fault(f"its zip record {short(name)} has {packed} bytes that claim to be {length}")
        yield Record(name, header, length)


def _wide(extra: bytes, numbers: list[int]) -> list[int]:
    """Size, packed size and place, with those that do not fit 32 bits taken from the zip64 field."""
    wide = [i for i, number in enumerate(numbers) if number == _ALL32]
    position = 0
    while wide and position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1 and length >= 8 * len(wide) and position + 4 + length <= len(extra):
            for slot, i in enumerate(wide):
                (numbers[i],) = struct.unpack_from("<Q", extra, position + 4 + 8 * slot)
            return numbers
        position += 4 + length
    return numbers
