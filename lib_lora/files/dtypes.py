"""The dtypes of files: their names and widths, and the torch dtypes they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lib_lora.errors import BadFile

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BITS = {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16}
BITS |= {"U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
BITS |= {"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}
TORCH_NAMES |= {"I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
TORCH_NAMES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_FILE_NAMES = {f"torch.{torch_name}": name for name, torch_name in TORCH_NAMES.items()}


def torch_dtype(name: str) -> torch.dtype | None:
    """The torch dtype of a file's dtype name, or None if this torch has none."""
    import torch

    dtype: torch.dtype | None = getattr(torch, TORCH_NAMES.get(name, ""), None)
    return dtype


def file_dtype(dtype: Any) -> str:
    """The file's name of a torch dtype. Raises BadFile for one safetensors does not have."""
    if str(dtype) not in _FILE_NAMES:
        raise BadFile(f"dtype {dtype} cannot be stored in a safetensors file; convert the tensor to float32")
    return _FILE_NAMES[str(dtype)]


def numbers_in(raw: bytearray, dtype: torch.dtype) -> Tensor:
    """Little-endian bytes as a flat tensor that shares their memory."""
    import torch

    if not raw:
        return torch.empty(0, dtype=dtype)
    if dtype == torch.bool:
        return torch.frombuffer(raw, dtype=torch.uint8) != 0  # other bytes than 0 and 1 are no bool to a processor
    return torch.frombuffer(raw, dtype=dtype)
