"""A pickle machine of our own that builds plain data and calls nothing: what torch.save writes, and no more.

A pickle is a program. Python's own unpickler runs it with whatever functions it names, and even a restricted one
sets attributes, reserves memory by numbers from the file and hashes what the file made up. Here a global is a mere
`Name`, a call is a `Call` record of name and arguments, and only names that the caller allows are accepted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from lib_lora.files.header import Fault, Unsafe, short

MAX_STEPS = 1_000_000  # a checkpoint of 5,000 tensors takes 250,000; each step may cost about 100 bytes
MAX_TEXT = 1 << 20
_MARK = object()


@dataclass(frozen=True)
class Name:
    """A global that the pickle names, e.g. `collections.OrderedDict`; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """What the pickle would have made by calling `function` with `arguments`; `keys` of a mapping it then fills."""

    function: Name
    arguments: tuple[Any, ...]


@dataclass(eq=False)
class Persistent:
    """A reference to something outside the pickle: a storage."""

    identity: tuple[Any, ...]


class Machine:
    """Runs one pickle of a stream.

    `allowed` are the full names of acceptable globals, `mappings` those whose calls make a dict. Raises Fault, and
    nothing else, for whatever the stream holds.
    """

    def __init__(self, stream: BinaryIO, limit: int, allowed: Container[str], mappings: Container[str]) -> None:
        self.stream, self.left = stream, limit
        self.allowed, self.mappings = allowed, mappings
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.references: list[Persistent] = []  # every storage that was mentioned

    def run(self) -> Any:
        """The object that the pickle describes, of dict, list, tuple, str, numbers, Name, Call and Persistent."""
        try:
            for _ in range(MAX_STEPS):
                code = self._take(1)
                if code == b".":
                    return self._pop()
                step = _STEPS.get(code)
                if step is None:
                    raise Unsafe(f"its pickle has the instruction {code!r}, which torch.save does not write")
                step(self)
        except (IndexError, KeyError) as error:
            raise Fault("its pickle takes what it never put there; the file is damaged") from error
        except (UnicodeError, OSError, struct.error) as error:
            raise Fault(f"its pickle cannot be read ({type(error).__name__})") from error
        raise Fault(f"its pickle has more than {MAX_STEPS} instructions")

    def _take(self, length: int) -> bytes:
        if length > self.left:
            raise Fault("its pickle ends too early, or is too long")
        self.left -= length
        data = self.stream.read(length)
        if len(data) != length:
            raise Fault("its pickle is cut off")
        return data

    def _number(self, layout: str) -> int:
        (value,) = struct.unpack(layout, self._take(struct.calcsize(layout)))
        return int(value)

    def _text(self, layout: str) -> str:
        length = self._number(layout)
        if length > MAX_TEXT:
            raise Fault(f"its pickle has a text of {length} bytes")
        return self._take(length).decode("utf-8", "surrogatepass")

    def _line(self) -> str:
        line = self.stream.readline(512)
        self.left -= len(line)
        if not line.endswith(b"\n") or self.left < 0:
            raise Fault("its pickle is cut off in a name")
        return line[:-1].decode("utf-8")

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise Fault("its pickle takes what it never put there; the file is damaged")
        return value

    def _top(self) -> Any:
        return self.stack[-1]

    def _pop_mark(self) -> list[Any]:
        items: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        items.reverse()
        return items

    def _named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Fault("its pickle names a global by something that is no text")
        found = Name(module, name)
        if str(found) not in self.allowed:
            raise Unsafe(f"it asks for {short(str(found))}, which weights do not need; nothing of it was run")
        self.stack.append(found)

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise Fault(f"its pickle calls {short(function)}, which is no function")
        mapping = str(function) in self.mappings
        self.stack.append(_mapping(arguments) if mapping else Call(function, arguments))

    def _build(self) -> None:
        """State of an object: kept for none, since it tells nothing about weights (`_metadata` of a state dict)."""
        self._pop()
        if not isinstance(self._top(), (dict, Call)):
            raise Fault(f"its pickle sets the state of {short(self._top())}")

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict):
            raise Fault(f"its pickle puts items into {short(target)}")
        if len(items) % 2:
            raise Fault("its pickle has a key without a value")
        for key, value in zip(items[::2], items[1::2]):
            # Tuples could nest so that hashing them takes for ever.
            if not isinstance(key, (str, int, float, bytes, Name, type(None))):
                raise Fault(f"its pickle has {short(key)} for a key")
            target[key] = value

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise Fault(f"its pickle appends to {short(target)}")
        target += items

    def _persistent(self) -> None:
        identity = self._pop()
        if not isinstance(identity, tuple):
            raise Fault(f"its pickle refers to {short(identity)} instead of a storage")
        self.references.append(Persistent(identity))
        self.stack.append(self.references[-1])

    def _remember(self, index: int) -> None:
        value = self._top()
        if value is _MARK:
            raise Fault("its pickle takes what it never put there; the file is damaged")
        self.memo[index] = value

    def _protocol(self) -> None:
        if (version := self._number("<B")) > 5:
            raise Fault(f"its pickle has the unknown protocol {version}")

    def _integer(self, layout: str) -> None:
        length = self._number(layout)
        if not 0 <= length <= 32:
            raise Fault(f"its pickle has a number of {length} bytes")
        self.stack.append(int.from_bytes(self._take(length), "little", signed=True))


def _mapping(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """`OrderedDict()`; of `OrderedDict([(key, value), ...])`, as protocol 1 writes it, only text keys are taken."""
    pairs = arguments[0] if arguments and isinstance(arguments[0], list) else ()
    found: dict[Any, Any] = {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise Fault("its pickle makes a mapping of something else than names and values")
        found[pair[0]] = pair[1]
    return found


def _push(value: Callable[[Machine], object]) -> Callable[[Machine], None]:
    return lambda machine: machine.stack.append(value(machine))


def _ignore(step: Callable[[Machine], object]) -> Callable[[Machine], None]:
    def ignoring(machine: Machine) -> None:
        step(machine)

    return ignoring


def _tuple(size: int) -> Callable[[Machine], None]:
    def step(machine: Machine) -> None:
        machine.stack.append(tuple([machine._pop() for _ in range(size)][::-1]))

    return step


def _stack_global(machine: Machine) -> None:
    name, module = machine._pop(), machine._pop()
    machine._named(module, name)


def _refused(machine: Machine) -> NoReturn:
    raise Unsafe("it asks for Python's copyreg registry, which weights do not need; nothing of it was run")


_STEPS: dict[bytes, Callable[[Machine], None]] = {
    b"\x80": Machine._protocol,
    b"\x95": _ignore(lambda m: m._number("<Q")),  # FRAME: a hint for readers that prefetch
    b"(": _push(lambda m: _MARK),
    b"0": _ignore(Machine._pop),
    b"1": _ignore(Machine._pop_mark),
    b"}": _push(lambda m: {}),
    b"]": _push(lambda m: []),
    b")": _push(lambda m: ()),
    b"N": _push(lambda m: None),
    b"\x88": _push(lambda m: True),
    b"\x89": _push(lambda m: False),
    b"K": _push(lambda m: m._number("<B")),
    b"M": _push(lambda m: m._number("<H")),
    b"J": _push(lambda m: m._number("<i")),
    b"\x8a": lambda m: m._integer("<B"),
    b"\x8b": lambda m: m._integer("<i"),
    b"G": _push(lambda m: struct.unpack(">d", m._take(8))[0]),
    b"X": _push(lambda m: m._text("<I")),
    b"\x8c": _push(lambda m: m._text("<B")),
    b"\x8d": _push(lambda m: m._text("<Q")),
    b"B": _push(lambda m: m._take(m._number("<I"))),
    b"C": _push(lambda m: m._take(m._number("<B"))),
    b"U": _push(lambda m: m._text("<B")),  # Python 2's str: names
    b"T": _push(lambda m: m._text("<I")),
    b"c": lambda m: m._named(m._line(), m._line()),
    b"\x93": _stack_global,
    b"R": Machine._call,
    b"\x81": Machine._call,
    b"b": Machine._build,
    b"s": lambda m: m._set_items([m._pop(), m._pop()][::-1]),
    b"u": lambda m: m._set_items(m._pop_mark()),
    b"a": lambda m: m._append([m._pop()]),
    b"e": lambda m: m._append(m._pop_mark()),
    b"t": _push(lambda m: tuple(m._pop_mark())),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"Q": Machine._persistent,
    b"q": lambda m: m._remember(m._number("<B")),
    b"r": lambda m: m._remember(m._number("<I")),
    b"\x94": lambda m: m._remember(len(m.memo)),
    b"h": _push(lambda m: m.memo[m._number("<B")]),
    b"j": _push(lambda m: m.memo[m._number("<I")]),
    b"\x82": _refused,
    b"\x83": _refused,
    b"\x84": _refused,
}
