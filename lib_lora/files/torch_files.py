"""torch.save's two containers, the zip and the older sequence of pickles: tensors read one by one, nothing run."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lib_lora.files import torch_zip
from lib_lora.files.dtypes import BITS, numbers_in, torch_dtype
from lib_lora.files.header import Fault, TensorInfo, read_exactly, short
from lib_lora.files.pickles import Storage, Stored, machine, named_tensors, storage_of

if TYPE_CHECKING:
    from torch import Tensor

MAX_PICKLE = 64 << 20
GROUPS = ("text_encoder", "unet")  # how cloneofsimo calls its two files of lists
_MAGIC = 0x1950A86A20F9469CFC6C  # what every file of the older format begins with
Place = Callable[[Storage], tuple[int, int]]  # of a storage: its offset in the file and its bytes there


@dataclass
class Pickled:
    """An open torch.save file: what its pickle describes, and where each storage lies."""

    file: BinaryIO
    size: int
    content: Any
    place: Place

    def tensors(self, group: str) -> dict[str, Stored]:
        """Its tensors by name, see `named_tensors`. Raises Fault also if one of them is not wholly in the file."""
        found = named_tensors(self.content, group)
        for name, stored in found.items():
            start, length = self.place(stored.storage)
            if stored.storage.nbytes > length or start + length > self.size:
                raise Fault(f"it is cut off: tensor {short(name)} needs {stored.storage.nbytes} of {length} bytes")
        total = sum(TensorInfo(stored.dtype, stored.shape).nbytes for stored in found.values())
        if total > 4 * self.size:  # tied weights may be named twice, not a thousand times
            raise Fault(f"its {len(found)} tensors share their bytes so often that they need {total} in memory")
        return found

    def read(self, stored: Stored) -> Tensor:
        """One tensor, in memory of its own. Raises Fault."""
        import torch

        dtype = torch_dtype(stored.dtype)
        if dtype is None:
            raise Fault(f"this torch has no dtype for {stored.dtype!r}")
        start, _ = self.place(stored.storage)
        flat = numbers_in(read_exactly(self.file, start + stored.begin, stored.nbytes), dtype)
        if not flat.numel():
            return flat.reshape(stored.shape)
        return torch.as_strided(flat, stored.shape, stored.strides).contiguous()


def speaks(head: bytes) -> bool:
    """Whether a file beginning with these (9 or more) bytes is of torch.save, rather than a safetensors file."""
    if head[4:9] == b"\0\0\0\0{":  # a length below 4 GiB and JSON, whatever the length spells
        return False
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06", *(b"\x80%c" % protocol for protocol in range(2, 6))))


def open_pickled(file: BinaryIO, size: int) -> Pickled:
    """Run the pickle of an open file of `size` bytes through the machine. Raises Fault."""
    return _zipped(file, size) if read_exactly(file, 0, 2) == b"PK" else _older(file, size)


def sibling(path: Path) -> Path | None:
    """cloneofsimo's file of the text encoder beside that of the UNet: `x.text_encoder.pt` for `x.pt`."""
    if path.suffix != ".pt" or is_text_encoder(path):
        return None
    beside = path.with_suffix(".text_encoder.pt")
    return beside if os.path.isfile(beside) else None


def is_text_encoder(path: Path) -> bool:
    """Whether a path is such a sibling itself."""
    return path.name.endswith(".text_encoder.pt")


def _zipped(file: BinaryIO, size: int) -> Pickled:
    found = torch_zip.records(file, size)
    if "data.pkl" not in found:
        raise Fault("it is a zip without data.pkl, so torch.save did not write it")
    order = found.get("byteorder")
    if order is not None and order.length == len("big"):
        raise Fault("its numbers are in big-endian order; save it again on an ordinary machine")
    entry = found["data.pkl"]
    if entry.length > MAX_PICKLE:
        raise Fault(f"its pickle claims {entry.length} bytes; at most {MAX_PICKLE} are allowed")
    raw = read_exactly(file, torch_zip.data_start(file, entry), entry.length)
    content = machine(io.BytesIO(raw), len(raw)).run()

    def place(storage: Storage) -> tuple[int, int]:
        record = found.get(f"data/{storage.key}")
        if record is None:
            raise Fault(f"it has no record for storage {short(storage.key)}")
        return torch_zip.data_start(file, record), record.length

    return Pickled(file, size, content, place)


def _older(file: BinaryIO, size: int) -> Pickled:
    file.seek(0)
    magic, _, about = (machine(file, min(MAX_PICKLE, size)).run() for _ in range(3))
    if magic != _MAGIC:
        raise Fault("it is a pickle, but torch.save did not write it")
    if isinstance(about, dict) and about.get("little_endian") is False:
        raise Fault("its numbers are in big-endian order; save it again on an ordinary machine")
    weights = machine(file, min(MAX_PICKLE, size))
    content = weights.run()
    keys = machine(file, min(MAX_PICKLE, size)).run()
    widths = {storage.key: BITS[storage.dtype] // 8 for storage in map(storage_of, weights.references)}
    places: dict[str, tuple[int, int]] = {}
    position = file.tell()
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in widths:
            raise Fault(f"it has a storage {short(key)} that its pickle does not mention")
        (numbers,) = struct.unpack("<q", read_exactly(file, position, 8))
        length = numbers * widths[key]
        if numbers < 0 or position + 8 + length > size:
            raise Fault(f"it is cut off: storage {short(key)} has {numbers} numbers at byte {position}")
        places[key] = position + 8, length
        position += 8 + length

    def place(storage: Storage) -> tuple[int, int]:
        if storage.key not in places:
            raise Fault(f"it has no storage {short(storage.key)}")
        return places[storage.key]

    return Pickled(file, size, content, place)
