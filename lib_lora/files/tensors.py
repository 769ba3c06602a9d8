"""Files of tensors: read whole or one by one, safetensors or torch.save's, and written atomically as safetensors."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lib_lora.errors import BadFile
from lib_lora.files import torch_files
from lib_lora.files.dtypes import BITS, file_dtype, numbers_in, torch_dtype
from lib_lora.files.header import Fault, Header, TensorInfo, opened, read_exactly, safetensors_header, short

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Header", "TensorInfo", "file_dtype", "read_header", "tensor_reader", "torch_dtype"]
Read = Callable[[str], "Tensor"]


def read_header(path: str | Path) -> Header:
    """The header of a file of tensors, checked against the file's size. Raises BadFile naming file and fault."""
    with tensor_reader(path) as (header, _):
        return header


def read_tensors(path: str | Path, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a file (or the named ones) on the CPU, in their own memory: the file may be replaced meanwhile.

    Raises BadFile naming file and fault.
    """
    with tensor_reader(path) as (header, read):
        return {name: read(name) for name in (header.tensors if names is None else names)}


@contextlib.contextmanager
def tensor_reader(path: str | Path) -> Iterator[tuple[Header, Read]]:
    """The header and a function that reads one tensor by name, while the file is open.

    Reads safetensors and what torch.save wrote, told apart by their first bytes, never by their names. Of the latter
    nothing is run, see `pickles`; it has no metadata. Raises BadFile naming file and fault.
    """
    path = Path(path)
    file, size = opened(path)
    with contextlib.ExitStack() as stack:
        stack.enter_context(file)
        with faults_of(path):
            pickled = torch_files.speaks(bytes(read_exactly(file, 0, min(size, 9))))
            header, read = _pickled(stack, path, file, size) if pickled else _plain(file, size)

        def checked(name: str) -> Tensor:
            with faults_of(path, f" (tensor {short(name)})"):
                return read(name)

        yield header, checked


@contextlib.contextmanager
def faults_of(path: Path, where: str = "") -> Iterator[None]:
    """In here a Fault becomes a BadFile naming the file."""
    try:
        yield
    except Fault as fault:
        raise BadFile(f"{path} is not a readable network file: {fault}{where}; {fault.advice}") from fault


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
    order = sorted(infos, key=lambda name: (-BITS[infos[name].dtype], name))
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


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file that takes `path`'s place when the block ends well, and leaves nothing behind otherwise.

    Raises BadFile if the folder or file cannot be written.
    """
    path = Path(path)
    own = f"{os.getpid()}-{threading.get_ident()}"  # two threads may write the same file, as two tabs of a page do
    temporary = path.with_name(f".{path.name[:40]}.{own}.tmp")  # names may be as long already as they can be
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


def _plain(file: BinaryIO, size: int) -> tuple[Header, Read]:
    header = safetensors_header(file, size)

    def read(name: str) -> Tensor:
        info = header.tensors[name]
        dtype = torch_dtype(info.dtype)
        if dtype is None:
            raise Fault(f"this torch has no dtype for {info.dtype!r}")
        raw = read_exactly(file, header.data_start + info.begin, info.nbytes)
        return numbers_in(raw, dtype).reshape(info.shape)

    return header, read


def _pickled(stack: contextlib.ExitStack, path: Path, file: BinaryIO, size: int) -> tuple[Header, Read]:
    text_encoder, unet = torch_files.GROUPS
    source = torch_files.open_pickled(file, size)
    found = source.tensors(text_encoder if torch_files.is_text_encoder(path) else unet)
    readers = dict.fromkeys(found, source.read)
    beside = torch_files.sibling(path) if any(name.startswith(f"{unet}:0:") for name in found) else None
    if beside is not None:
        other, other_size = opened(beside)
        stack.enter_context(other)
        with faults_of(beside):
            source = torch_files.open_pickled(other, other_size)
            more = source.tensors(text_encoder)
        readers |= dict.fromkeys(more, source.read)
        found |= more
    header = Header({name: TensorInfo(stored.dtype, stored.shape) for name, stored in found.items()})
    return header, lambda name: readers[name](found[name])
