"""What the pickle of a torch.save file describes: tensors with names, dtypes, shapes and places in storages.

Nothing of it is run, see `pickle_machine`. Which functions torch writes, and with which arguments, is in its
`torch/_utils.py` and `torch/serialization.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from lib_lora.files.dtypes import BITS
from lib_lora.files.header import MAX_AXES, Fault, count, require_text, short
from lib_lora.files.pickle_machine import Call, Machine, Name, Persistent

_STORAGES = {"FloatStorage": "F32", "DoubleStorage": "F64", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
_STORAGES |= {"LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8"}
_STORAGES |= {"ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "UntypedStorage": "U8"}
_DTYPES = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3"}
_DTYPES |= {"float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0", "int64": "I64", "int32": "I32", "int16": "I16"}
_DTYPES |= {"int8": "I8", "uint8": "U8", "bool": "BOOL", "uint16": "U16", "uint32": "U32", "uint64": "U64"}
_TENSOR, _TENSOR1, _TENSOR3 = (f"torch._utils._rebuild_tensor{version}" for version in ("_v2", "", "_v3"))
_WRAPPERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_TYPED = "torch._tensor._rebuild_from_type_v2"
_MAPPINGS = frozenset({"collections.OrderedDict", "collections.defaultdict", "collections.Counter"})
# Things beside the weights that training programs leave in a checkpoint. Recorded, like all names, never looked up.
_HARMLESS = {"torch.Size", "torch.device", "torch.Tensor", "torch.nn.parameter.Parameter", "_codecs.encode"}
_HARMLESS |= {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("int", "list", "dict", "set")}
_HARMLESS |= {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")}
_HARMLESS |= {"numpy.dtype", "numpy.ndarray"}
_HARMLESS |= {"pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"}
ALLOWED = {_TENSOR, _TENSOR1, _TENSOR3, _TYPED, *_WRAPPERS, *_MAPPINGS, *_HARMLESS, "torch.storage.UntypedStorage"} | {
    f"torch.{name}" for name in (*_STORAGES, *_DTYPES)
}
_MAX_DEPTH, _MAX_NAME, _MAX_TENSORS = 8, 500, 100_000  # far above any checkpoint; without them names could fill memory


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file: its key in the pickle, its length, and where in it an older file's view begins."""

    key: str
    dtype: str
    length: int
    first: int = 0

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.length * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Stored:
    """A tensor as the pickle describes it; `strides` in numbers of `dtype`, `begin` in bytes of the storage."""

    storage: Storage
    dtype: str
    begin: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes from its first number to behind its last: more than the tensor's own if it has gaps."""
        if 0 in self.shape:
            return 0
        steps = sum((width - 1) * stride for width, stride in zip(self.shape, self.strides))
        return (1 + steps) * BITS[self.dtype] // 8


def machine(stream: BinaryIO, limit: int) -> Machine:
    """A machine for the pickles that torch.save writes, at most `limit` bytes long."""
    return Machine(stream, limit, ALLOWED, _MAPPINGS)


def named_tensors(content: Any, group: str) -> dict[str, Stored]:
    """The tensors of what a pickle describes, by name.

    A `state_dict` inside is taken instead of what is round it; names of nested mappings are joined with dots. A list
    is cloneofsimo's, up and down in turn: `<group>:0:up`, `<group>:0:down`, ... Raises Fault.
    """
    for _ in range(3):
        inner = content.get("state_dict") if isinstance(content, dict) else None
        content = inner if isinstance(inner, dict) else content
    found: dict[str, Stored] = {}
    for name, value in _numbered(content, group) if isinstance(content, list) else _leaves(content):
        try:
            stored = _stored(value)
        except Fault as fault:
            raise Fault(f"tensor {short(name)} cannot be: {fault}") from fault
        if stored is None:
            continue
        if name in found or len(name) > _MAX_NAME or len(found) >= _MAX_TENSORS:
            raise Fault(f"its name {short(name)} is there twice, or too long, or one of too many")
        found[name] = stored
    require_text(*found)
    return found


def _numbered(content: list[Any], group: str) -> Iterator[tuple[str, Any]]:
    for i, value in enumerate(content):
        yield f"{group}:{i // 2}:{('up', 'down')[i % 2]}", value


def _leaves(content: Any) -> Iterator[tuple[str, Any]]:
    """Values of nested mappings with their names joined; a mapping that is there twice is entered once."""
    waiting = [("", content, 0)]
    seen: set[int] = set()
    while waiting:
        prefix, mapping, depth = waiting.pop()
        if not isinstance(mapping, dict) or id(mapping) in seen:
            continue
        seen.add(id(mapping))
        if depth > _MAX_DEPTH or len(prefix) > _MAX_NAME:
            raise Fault("its mappings are nested too deep")
        for key, value in mapping.items():
            if isinstance(key, (str, int)):
                name = f"{prefix}{key}"
                yield name, value
                waiting.append((f"{name}.", value, depth + 1))


def _stored(value: Any) -> Stored | None:
    """The tensor that a value describes, None if it describes something else. Raises Fault if it cannot be one."""
    for _ in range(4):
        if not isinstance(value, Call):
            return None
        function, given = str(value.function), value.arguments
        if function in _WRAPPERS and given:
            value = given[0]
        elif function == _TYPED and len(given) > 2 and isinstance(given[0], Name) and isinstance(given[2], tuple):
            value = Call(given[0], given[2])
        elif function in (_TENSOR, _TENSOR1, _TENSOR3):
            return _tensor(function, given)
    return None


def _tensor(function: str, given: tuple[Any, ...]) -> Stored:
    if len(given) < (7 if function == _TENSOR3 else 4) or not isinstance(given[0], Persistent):
        raise Fault("its pickle describes a tensor without a storage, offset, shape or strides")
    storage = storage_of(given[0])
    dtype = storage.dtype if function != _TENSOR3 else _DTYPES.get(getattr(given[6], "name", ""))
    offset, shape, strides = given[1], _sizes(given[2]), _sizes(given[3])
    numbers = [offset, *shape, *strides]
    if dtype is None or len(shape) != len(strides) or len(shape) > MAX_AXES or not all(map(_plain, numbers)):
        raise Fault("its pickle describes a tensor of impossible dtype, shape or strides")
    width, own = BITS[dtype] // 8, BITS[storage.dtype] // 8
    stored = Stored(storage, dtype, offset * width + storage.first * own, shape, strides)
    if stored.begin + stored.nbytes > storage.nbytes or count(shape) * width > stored.nbytes:
        raise Fault(f"its pickle describes a tensor of more numbers than storage {short(storage.key)} has")
    return stored


def storage_of(reference: Persistent) -> Storage:
    """`("storage", type, key, device, length[, view])`, a view being `(key, first, length)` or None."""
    kind, key, length, view = (*reference.identity[1:3], *reference.identity[4:6], None, None, None, None)[:4]
    dtype = _STORAGES.get(kind.name) if isinstance(kind, Name) and kind.module.startswith("torch") else None
    first = view[1] if isinstance(view, tuple) and len(view) == 3 else 0
    known = reference.identity[:1] == ("storage",) and isinstance(key, str) and _plain(length) and _plain(first)
    if dtype is None or not known:
        raise Fault("its pickle refers to something else than a storage")
    return Storage(key, dtype, length, first)


def _sizes(value: Any) -> tuple[Any, ...]:
    """A shape or strides; older files wrap it in torch.Size."""
    if isinstance(value, Call) and len(value.arguments) == 1:
        value = value.arguments[0]
    if not isinstance(value, (tuple, list)):
        raise Fault(f"its pickle has {short(value)} for a shape")
    return tuple(value)


def _plain(number: Any) -> bool:
    return type(number) is int and 0 <= number < 1 << 62
