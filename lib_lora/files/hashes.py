"""The hashes by which a network file is known: to the webui, to sites, to kohya's scripts."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lib_lora.errors import BadFile
from lib_lora.files.header import opened
from lib_lora.files.tensors import TensorInfo, file_dtype, layout, read_header, tensor_bytes

if TYPE_CHECKING:
    from torch import Tensor

LEGACY_START, LEGACY_LENGTH = 0x100000, 0x10000
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Hashes:
    """`data` is sha256 of all bytes after a safetensors header, the webui's hash; `whole` that of the whole file.

    They are what sites call AutoV3 and SHA256; AutoV2 is the first ten digits of the latter. A file without a
    safetensors header has one hash twice, as in the webui.
    """

    data: str
    whole: str


def file_hashes(path: str | Path, between: Callable[[], None] = lambda: None) -> Hashes:
    """Both hashes in one reading; `between` is called after each block and may raise to stop. Raises BadFile."""
    start = read_header(path).data_start
    data, whole = hashlib.sha256(), hashlib.sha256()
    file, _ = opened(path)
    position = 0
    with file:
        while block := _block(path, file):
            whole.update(block)
            data.update(memoryview(block)[max(0, start - position) :])
            position += len(block)
            between()
    return Hashes(data.hexdigest(), whole.hexdigest())


def _block(path: str | Path, file: BinaryIO) -> bytes:
    try:
        return file.read(_BLOCK)
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror or error}; check the disk") from error


def add_hashes(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """`metadata` with kohya's `sshs_model_hash` and `sshs_legacy_hash` for a file of these tensors."""
    infos = {name: TensorInfo(file_dtype(t.dtype), tuple(t.shape)) for name, t in tensors.items()}
    order, head = layout(infos, {k: v for k, v in metadata.items() if k.startswith("ss_")})
    whole, legacy = hashlib.sha256(), io.BytesIO(head)
    legacy.seek(0, io.SEEK_END)
    for name in order:
        data = tensor_bytes(tensors[name])
        whole.update(data)
        # Only this window is hashed; holding more of a large file would be waste.
        room = LEGACY_START + LEGACY_LENGTH - legacy.tell()
        legacy.write(data[: max(0, room)])
    window = legacy.getvalue()[LEGACY_START : LEGACY_START + LEGACY_LENGTH]
    hashes = {"sshs_model_hash": whole.hexdigest(), "sshs_legacy_hash": hashlib.sha256(window).hexdigest()[:8]}
    return dict(sorted({**metadata, **hashes}.items()))
