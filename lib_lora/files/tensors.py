"""safetensors: the header alone without torch, whole files, and atomic writes with reproducible bytes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lib_lora.errors import BadFile

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_HEADER = 100_000_000  # safetensors' own limit
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
_BITS |= {"I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8}
_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}
_TORCH_NAMES |= {"I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
_TORCH_NAMES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_FILE_NAMES = {f"torch.{torch_name}": name for name, torch_name in _TORCH_NAMES.items()}


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
        return math.prod(self.shape) * _BITS[self.dtype] // 8


@dataclass(frozen=True)
class Header:
    """What a safetensors file says before its data. `data_start` is the offset of the data in the file."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    data_start: int = 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by tensor name."""
        return {name: info.shape for name, info in self.tensors.items()}


def read_header(path: str | Path) -> Header:
    """The header of a safetensors file, checked against the file's size. Raises BadFile naming file and fault."""
    path = Path(path)
    with _reading(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise _bad(path, f"it has only {size} bytes")
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(MAX_HEADER, size - 8):
            raise _bad(path, f"its header claims {length} bytes of the file's {size}")
        raw = file.read(length)
    try:
        content = json.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _bad(path, f"its header is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise _bad(path, f"its header is a JSON {type(content).__name__}, not an object")
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise _bad(path, "its __metadata__ is not an object")
    tensors = {name: _info(path, name, entry, size - 8 - length) for name, entry in content.items()}
    return Header(tensors, {str(k): str(v) for k, v in metadata.items()}, 8 + length)


def read_tensors(path: str | Path, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a file (or the named ones) on the CPU, in their own memory: the file may be replaced meanwhile.

    Raises BadFile naming file and fault.
    """
    with tensor_reader(path) as (header, read):
        return {name: read(name) for name in (header.tensors if names is None else names)}


@contextlib.contextmanager
def tensor_reader(path: str | Path) -> Iterator[tuple[Header, Callable[[str], Tensor]]]:
    """The header and a function that reads one tensor by name, while the file is open. Raises BadFile."""
    path = Path(path)
    header = read_header(path)
    with _reading(path) as file:
        yield header, lambda name: _read(path, file, header, name)


def torch_dtype(name: str) -> torch.dtype | None:
    """The torch dtype of a file's dtype name, or None if this torch has none."""
    import torch

    dtype: torch.dtype | None = getattr(torch, _TORCH_NAMES.get(name, ""), None)
    return dtype


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically; equal content gives equal bytes. Raises BadFile if that is impossible."""
    infos = {name: TensorInfo(file_dtype(t.dtype), tuple(t.shape)) for name, t in tensors.items()}
    write_stream(path, infos, tensors.__getitem__, metadata)


def write_stream(
    path: str | Path,
    infos: Mapping[str, TensorInfo],
    produce: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Like `write_tensors` with one tensor in memory at a time: `produce(name)` is called in the file's order."""
    order, head = layout(infos, metadata)
    with atomic_file(path) as file:
        file.write(head)
        for name in order:
            tensor = produce(name)
            if (file_dtype(tensor.dtype), tuple(tensor.shape)) != (infos[name].dtype, infos[name].shape):
                raise BadFile(f"{name} became {tuple(tensor.shape)} {tensor.dtype} while writing {path}; report this")
            file.write(tensor_bytes(tensor))


def layout(infos: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None) -> tuple[list[str], bytes]:
    """The order of the tensors' data and the bytes before it. Wide dtypes come first, so that all stay aligned."""
    order = sorted(infos, key=lambda name: (-_BITS[infos[name].dtype], name))
    content: dict[str, Any] = {}
    if metadata:
        content["__metadata__"] = dict(sorted(metadata.items()))
    position = 0
    for name in order:
        info = infos[name]
        offsets = [position, position + info.nbytes]
        content[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": offsets}
        position = offsets[1]
    raw = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    return order, struct.pack("<Q", len(raw)) + raw


def tensor_bytes(tensor: Tensor) -> bytes:
    """A tensor's little-endian bytes."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def file_dtype(dtype: Any) -> str:
    """The file's name of a torch dtype. Raises BadFile for one safetensors does not have."""
    if str(dtype) not in _FILE_NAMES:
        raise BadFile(f"dtype {dtype} cannot be stored in a safetensors file; convert the tensor to float32")
    return _FILE_NAMES[str(dtype)]


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file that takes `path`'s place when the block ends well, and leaves nothing behind otherwise.

    Raises BadFile if the folder or file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadFile(f"cannot write {path}: {reason}; choose another place or free some space") from error
    finally:
        with contextlib.suppress(OSError):  # gone already when all went well
            temporary.unlink()


def _info(path: Path, name: str, entry: Any, available: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError) as error:
        raise _bad(path, f"its header entry {name!r} lacks dtype, shape or data_offsets") from error
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _bad(path, f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise _bad(path, f"tensor {name!r} has an impossible shape or place {numbers}")
    info = TensorInfo(dtype, tuple(shape), begin, end)
    if end > available:
        raise _bad(path, f"it is cut off: tensor {name!r} ends at byte {end} of {available}")
    if end - begin != info.nbytes:
        raise _bad(path, f"tensor {name!r} has {end - begin} bytes where its shape {shape} needs {info.nbytes}")
    return info


def _read(path: Path, file: BinaryIO, header: Header, name: str) -> Tensor:
    import torch

    info = header.tensors[name]
    dtype = torch_dtype(info.dtype)
    if dtype is None:
        raise _bad(path, f"this torch has no dtype for {info.dtype!r} of tensor {name!r}")
    raw = bytearray(info.nbytes)
    file.seek(header.data_start + info.begin)
    if file.readinto(raw) != info.nbytes:  # type: ignore[attr-defined]
        raise _bad(path, f"it became shorter while tensor {name!r} was read")
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.reshape(info.shape)


def _reading(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")  # noqa: SIM115 - every caller is a with statement
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error


def _bad(path: Path, fault: str) -> BadFile:
    return BadFile(f"{path} is not a readable safetensors file: {fault}; download or copy it again")
