"""Tags in a prompt -> requests: the webui's syntax with those of block-weight, loractl and SD.Next on top."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lib_lora.errors import BadTag
from lib_lora.prompt.blocks import LENGTHS, BlockWeights, parse_vector
from lib_lora.prompt.elements import Rule, format_rules, parse_rules
from lib_lora.prompt.presets import Presets
from lib_lora.prompt.request import Groups, NetworkRequest
from lib_lora.prompt.schedule import Strength, format_strength, parse_number, parse_strength

KINDS = ("lora", "lyco", "loractl")
_TAG = re.compile(r"<(\w+):([^>]+)>")  # as the webui reads tags
FORMS = (
    "<lora:name>, <lora:name:strength>, <lora:name:te:unet>, <lora:name:te:unet:dyn>, <lora:name:strength:preset>, "
    "or with names: te= unet= dyn= hr= hrte= hrunet= in= mid= out= lbw= x= lbwe= start= stop= step="
)
_STRENGTH = "a number as {0}=0.8, or strengths at steps as {0}=0@0,1@0.5"
_COUNT = "{0}= with a whole number, as {0}=10"
_BLOCKS = f"the name of a preset as lbw=INALL, or {LENGTHS}, as lbw=1,0,0.5,..."
# How each named argument is written.
NAMED = {
    **{key: _STRENGTH.format(key) for key in ("te", "unet", "hr", "hrte", "hrunet", "in", "mid", "out")},
    **{key: _COUNT.format(key) for key in ("dyn", "start", "stop")},
    "step": "the first step and the one to end before, as step=5-10",
    "lbw": _BLOCKS,
    "w": _BLOCKS,
    "x": "x= with a number, as x=0.7",
    "lbwe": "the name of a preset as lbwe=ATTNDEEPON, or blocks/elements/ratio as lbwe=IN05-OUT05/attn/0.5",
}
Value = TypeVar("Value")
Default = TypeVar("Default")


@dataclass(frozen=True)
class Tag:
    """A tag in a prompt: where it stands, its kind and its colon-separated items."""

    start: int
    stop: int
    kind: str
    items: tuple[str, ...]


def find_tags(prompt: str) -> Iterator[Tag]:
    """The tags of `KINDS`, in order. A tag that cannot be read is found too."""
    for found in _TAG.finditer(prompt):
        if found[1] in KINDS:
            yield Tag(found.start(), found.end(), found[1], tuple(found[2].split(":")))


def extract(prompt: str, presets: Presets | None = None) -> tuple[str, list[NetworkRequest]]:
    """The prompt without its tags of `KINDS`, and their requests in order. Raises BadTag."""
    requests: list[NetworkRequest] = []
    rest, end = "", 0
    for tag in find_tags(prompt):
        requests.append(parse_arguments(tag.items, presets))
        rest += prompt[end : tag.start]
        end = tag.stop
    return rest + prompt[end:], requests


def parse_arguments(items: Sequence[str], presets: Presets | None = None) -> NetworkRequest:
    """The request of a tag's colon-separated items, `["name", "0.8", "unet=0.5"]`.

    The UNet's strength defaults to the text encoder's, that to 1. As in the webui, `a=b` is a named argument and
    `a=b=c` a positional one; but a first item that names no argument we know is the network's name. `presets` are the
    usual ones by default. Raises BadTag quoting the tag and how the argument in question is written.
    """
    return _Reader(items, presets if presets is not None else Presets()).request()


def is_named(item: str, first: bool = False) -> bool:
    """Whether an item is a named argument rather than a positional one; `first`: it is the tag's first."""
    key, *rest = item.split("=")
    return len(rest) == 1 and (not first or key in NAMED)


def is_strength(text: str) -> bool:
    """Whether an item is meant as a strength: a number or a schedule, well written or not."""
    try:
        parse_strength(text)
    except ValueError:
        return "@" in text  # meant as one
    return True


def format_tag(request: NetworkRequest, kind: str = "lora") -> str:
    """The tag that reads back as this request, without any presets.

    Raises BadTag if a tag cannot hold the name.
    """
    words = [request.name, format_strength(request.te)]
    named: dict[str, Strength | None] = {"unet": request.unet if request.unet != request.te else None}
    if request.hr_te is not None and request.hr_te == request.hr_unet:
        named["hr"] = request.hr_te
    else:
        named |= {"hrte": request.hr_te, "hrunet": request.hr_unet}
    named |= dict(zip(("in", "mid", "out"), request.groups))
    words += [f"{key}={format_strength(value)}" for key, value in named.items() if value is not None]
    words += [f"dyn={request.dyn}"] if request.dyn is not None else []
    words += [f"lbw={request.blocks}"] if request.blocks is not None else []
    words += [f"lbwe={format_rules(request.elements)}"] if request.elements else []
    words += [f"start={request.start}"] if request.start else []
    words += [f"stop={request.stop}"] if request.stop is not None else []
    require_name(request.name)
    return f"<{kind}:{':'.join(words)}>"


def require_name(name: str) -> None:
    """Raises BadTag for a name that a tag cannot hold."""
    if not name.strip() or ":" in name or ">" in name or is_named(name, first=True):
        raise BadTag(f"the name {name!r} cannot stand in a tag; rename the file: no colon, no >, not like te=1")


class _Reader:
    """One tag being read."""

    def __init__(self, items: Sequence[str], presets: Presets) -> None:
        self.items, self.presets = items, presets
        named = [is_named(item, first=i == 0) for i, item in enumerate(items)]
        self.positional = [item for item, is_name in zip(items, named) if not is_name]
        self.named = dict(item.split("=") for item, is_name in zip(items, named) if is_name)

    def request(self) -> NetworkRequest:
        if not self.positional or not self.positional[0].strip():
            raise self.bad("it names no network")
        if len(self.positional) > 4:
            raise self.bad(f"it has {len(self.positional)} positional arguments")
        for key in self.named:
            if key not in NAMED:
                raise self.bad(f"{key}= is not known")
        third = self.positional[2] if len(self.positional) > 2 else None
        if third is not None and not is_strength(third):
            self._block_form(third)
        te = self.take("te", 1, parse_strength, 1.0)
        hires = self.take("hr", None, parse_strength, None)
        start, stop = self._span()
        return NetworkRequest(
            self.positional[0],
            te,
            self.take("unet", 2, parse_strength, te),
            self.take("dyn", 3, _rank, None),
            self.take("hrte", None, parse_strength, hires),
            self.take("hrunet", None, parse_strength, hires),
            self._groups(),
            self.take("lbw", None, self._blocks, self.take("w", None, self._blocks, None)),
            self.take("lbwe", None, self._elements, ()),
            start,
            stop,
        )

    def _block_form(self, third: str) -> None:
        """`name:strength:preset` or `name:strength:preset:x`: put under the arguments' names."""
        if "," not in third and third not in self.presets.weights:
            fault = f"{third!r} is neither a strength nor a preset (there are {self.presets.alike(third)})"
            raise self.bad(fault, f"{NAMED['unet']}; or {_BLOCKS}")
        self.named.setdefault("lbw", self.positional.pop(2))
        if len(self.positional) > 2:
            fourth = self.positional.pop(2)
            self.named.setdefault("x" if is_strength(fourth) else "lbwe", fourth)

    def _groups(self) -> Groups:
        first, middle, last = (self.take(key, None, parse_strength, None) for key in ("in", "mid", "out"))
        return first, middle, last

    def _span(self) -> tuple[int, int | None]:
        start, stop = self.take("start", None, _count, 0), self.take("stop", None, _count, None)
        start, stop = self.take("step", None, _span, (start, stop))
        if stop is not None and stop < start:
            raise self.bad(f"it stops at {stop} before it starts at {start}", NAMED["step"])
        return start, stop

    def _blocks(self, text: str) -> BlockWeights:
        x = self.take("x", None, parse_number, 1.0)
        if text in self.presets.weights:
            return parse_vector(self.presets.weights[text], x)
        if "," not in text:
            raise ValueError(f"there is no preset {text!r} (there are {self.presets.alike(text)})")
        return parse_vector(text, x)

    def _elements(self, text: str) -> tuple[Rule, ...]:
        if text in self.presets.elements:
            return self.presets.elements[text]
        if "/" not in text:
            raise ValueError(f"there is no preset {text!r} (there are {self.presets.alike(text)})")
        return parse_rules(text)

    def take(self, key: str, index: int | None, read: Callable[[str], Value], default: Default) -> Value | Default:
        """The named argument, else the positional one, else the default."""
        text = self.named.get(key)
        if text is None and index is not None and len(self.positional) > index:
            text = self.positional[index]
        if text is None:
            return default
        try:
            return read(text)
        except ValueError as error:
            raise self.bad(f"{key}: {error}", NAMED[key]) from error

    def bad(self, fault: str, form: str = FORMS) -> BadTag:
        return BadTag(f"the tag <lora:{':'.join(self.items)}> cannot be read: {fault}. Write {form}")


def _rank(text: str) -> int:
    value = _count(text)
    if value < 1:
        raise ValueError(f"{text!r} is below 1")
    return value


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a whole number") from error
    if value < 0:
        raise ValueError(f"{text!r} is below 0")
    return value


def _span(text: str) -> tuple[int, int | None]:
    first, dash, last = text.partition("-")
    if not dash:
        raise ValueError(f"{text!r} does not say first-last")
    return _count(first), _count(last)
