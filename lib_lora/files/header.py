"""What a file of tensors says before its data: names, dtypes, shapes, metadata. Checked in full, without torch."""

from __future__ import annotations

import json
import os
import stat
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from lib_lora.errors import BadFile
from lib_lora.files.dtypes import BITS

MAX_HEADER = 100_000_000  # safetensors' own limit
MAX_READ = 1 << 36
MAX_AXES = 32  # torch's iterators stop at 64, and no layer has more than 5
_MAX_COUNT = 1 << 62  # more bytes than any disk has, and less than what overflows in torch


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a header: file dtype name such as "F16", shape, and its bytes relative to the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0

    @property
    def nbytes(self) -> int:
        """The bytes a tensor of this dtype and shape has."""
        return -(-count(self.shape) * BITS[self.dtype] // 8)


@dataclass(frozen=True)
class Header:
    """What a file says before its data. `data_start` is the offset of the data in a safetensors file, 0 in others."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    data_start: int = 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by tensor name."""
        return {name: info.shape for name, info in self.tensors.items()}


class Fault(Exception):
    """Why some bytes cannot be read; whoever knows the file makes a BadFile of it. `advice` says what to do."""

    advice = "download or copy it again"


class Unsafe(Fault):
    """Bytes that ask for more than reading."""

    advice = "delete it, or get the network as a .safetensors file from somebody you trust"


def count(shape: Sequence[int]) -> int:
    """How many numbers a tensor of this shape has. Raises Fault if that is absurd (then torch would overflow)."""
    numbers = room = 1
    for width in shape:
        numbers *= width
        room *= max(width, 1)  # torch multiplies strides also where another axis is empty
        if room > _MAX_COUNT:
            raise Fault("its shape has more numbers than any file can hold")
    return numbers


def opened(path: str | Path) -> tuple[BinaryIO, int]:
    """A regular file, open for reading, and its size. Raises BadFile naming path and reason."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: a pipe would wait for its writer
            raise BadFile(f"cannot read {path}: it is a folder or a device, not a file; choose a network file")
        file = open(path, "rb")  # noqa: SIM115 - every caller closes it
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error
    except ValueError as error:  # a zero byte, or what this system's names cannot hold
        raise BadFile(f"cannot read {str(path)!r}: {error}; check the path") from error
    try:
        return file, os.fstat(file.fileno()).st_size
    except OSError as error:
        file.close()
        raise BadFile(f"cannot read {path}: {error.strerror or error}; check the disk") from error


def read_exactly(file: BinaryIO, offset: int, length: int) -> bytearray:
    """`length` bytes at `offset`. Raises Fault if the file ends before or cannot be read, or for lack of memory."""
    if length > MAX_READ:
        raise Fault(f"{length} bytes at {offset} are more than any tensor of a diffusion model has")
    try:
        raw = bytearray(length)
        file.seek(offset)
        got = file.readinto(raw)  # type: ignore[attr-defined]
    except OSError as error:
        raise Fault(f"reading {length} bytes at {offset} failed: {error.strerror or error}") from error
    except (MemoryError, OverflowError) as error:
        raise Fault(f"there is no memory for the {length} bytes at {offset}") from error
    if got != length:
        raise Fault(f"it became shorter while it was read: {got} of {length} bytes at {offset}")
    return raw


def safetensors_header(file: BinaryIO, size: int) -> Header:
    """The header of an open safetensors file of `size` bytes. Raises Fault."""
    if size < 8:
        raise Fault(f"it has only {size} bytes")
    (length,) = struct.unpack("<Q", read_exactly(file, 0, 8))
    if length > min(MAX_HEADER, size - 8):
        raise Fault(f"its header claims {length} bytes of the file's {size} (at most {MAX_HEADER} are allowed)")
    content = _json(read_exactly(file, 8, length))
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise Fault("its __metadata__ is not an object")
    odd = next((name for name, value in metadata.items() if not isinstance(value, str)), None)
    if odd is not None:
        raise Fault(f"the value of {short(odd)} in its __metadata__ is not text")
    tensors = {name: _info(name, entry, size - 8 - length) for name, entry in content.items()}
    _require_whole(tensors, size - 8 - length)
    require_text(*tensors, *metadata, *metadata.values())
    return Header(tensors, metadata, 8 + length)


def short(value: object) -> str:
    """A name or number as an error message can hold it; a hostile one may be megabytes long."""
    if isinstance(value, str):
        return repr(value if len(value) <= 100 else value[:100] + "...")
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 1 << 64 else f"a number of {value.bit_length()} bits"
    return f"a {type(value).__name__}"


def _json(raw: bytearray) -> dict[str, Any]:
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Fault(f"its header is not JSON ({error})") from error
    except MemoryError as error:
        raise Fault("its header is too complex for this machine's memory") from error
    if not isinstance(content, dict):
        raise Fault(f"its header is a JSON {type(content).__name__}, not an object")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key given twice would let two readers see two different files."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise Fault(f"its header has {short(twice)} twice")
    return found


def _info(name: str, entry: Any, available: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError) as error:
        raise Fault(f"its header entry {short(name)} lacks dtype, shape or data_offsets") from error
    if not isinstance(dtype, str) or dtype not in BITS:
        raise Fault(f"tensor {short(name)} has the unknown dtype {short(dtype)}")
    odd = [n for n in numbers if type(n) is not int or not 0 <= n <= _MAX_COUNT]
    if odd or len(numbers) > MAX_AXES + 2 or not isinstance(shape, list):
        which = short(odd[0]) if odd else f"{len(numbers)} numbers"
        raise Fault(f"tensor {short(name)} has an impossible shape or place ({which})")
    try:
        bits = count(shape) * BITS[dtype]
    except Fault as fault:
        raise Fault(f"tensor {short(name)} cannot be: {fault}") from fault
    if end > available:
        raise Fault(f"it is cut off: tensor {short(name)} ends at byte {end} of {available}")
    if (end - begin) * 8 != bits:
        raise Fault(f"tensor {short(name)} has {end - begin} bytes where its shape needs {bits / 8:g}")
    return TensorInfo(dtype, tuple(shape), begin, end)


def _require_whole(tensors: Mapping[str, TensorInfo], available: int) -> None:
    """The format's rule: tensors lie side by side and fill the file. Names that share bytes could fill any memory."""
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            kind = "overlaps another" if info.begin < position else "lies behind a hole"
            raise Fault(f"tensor {short(name)} {kind}: it begins at byte {info.begin}, not {position}")
        position = info.end
    if position != available:
        raise Fault(f"its tensors end at byte {position}, its data at {available}")


def require_text(*texts: str) -> None:
    """Raises Fault for half a character pair: JSON and pickles can spell it, but nobody can print or write it again."""
    for text in texts:
        try:
            if not text.isascii():
                text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise Fault(f"{short(text)} is not text") from error
