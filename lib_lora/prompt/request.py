"""Tags in a prompt -> frozen requests, in the syntax of the webui's built-in Lora extension."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lib_lora.errors import BadTag
from lib_lora.prompt.strengths import Moment, Strengths

KINDS = ("lora", "lyco")
FORMS = (
    "<lora:name>, <lora:name:strength>, <lora:name:te:unet>, <lora:name:te:unet:dyn>, "
    "or with names: te=, unet= (numbers), dyn= (a whole number)"
)
_TAG = re.compile(r"<(\w+):([^>]+)>")  # as the webui reads tags
_NAMED = ("te", "unet", "dyn")


@dataclass(frozen=True)
class NetworkRequest:
    """One tag: the network's name, its strengths for text encoders and UNet, and the ranks to use of a DyLoRA."""

    name: str
    te: float = 1.0
    unet: float = 1.0
    dyn: int | None = None

    @property
    def scheduled(self) -> bool:
        """Whether the strengths differ between moments of one picture."""
        return False

    def strengths(self, moment: Moment = Moment()) -> Strengths:  # noqa: B008 - frozen
        """What the tag means at one moment."""
        return Strengths(self.te, self.unet)


def parse_arguments(items: Sequence[str]) -> NetworkRequest:
    """The request of a tag's colon-separated items, `["name", "0.8", "unet=0.5"]`.

    The UNet's strength defaults to the text encoder's, that to 1. As in the webui, `a=b` is a named argument and
    `a=b=c` a positional one. Raises BadTag quoting the tag.
    """
    split = [item.split("=", 2) for item in items]
    positional = [item for item, pieces in zip(items, split, strict=True) if len(pieces) != 2]
    named = {pieces[0]: pieces[1] for pieces in split if len(pieces) == 2}
    if not positional or not positional[0].strip():
        raise _bad(items, "it names no network")
    if len(positional) > 4:
        raise _bad(items, f"it has {len(positional)} positional arguments")
    for key in named:
        if key not in _NAMED:
            raise _bad(items, f"{key}= is not known")
    te = _number(items, named.get("te", _at(positional, 1, "1")))
    unet = _number(items, named.get("unet", _at(positional, 2, str(te))))
    dyn = named.get("dyn", _at(positional, 3, ""))
    return NetworkRequest(positional[0], te, unet, _rank(items, dyn) if dyn else None)


def extract(prompt: str) -> tuple[str, list[NetworkRequest]]:
    """The prompt without its `lora` and `lyco` tags, and their requests in order. Raises BadTag."""
    requests: list[NetworkRequest] = []

    def take(found: re.Match[str]) -> str:
        if found[1] not in KINDS:
            return found[0]
        requests.append(parse_arguments(found[2].split(":")))
        return ""

    return _TAG.sub(take, prompt), requests


def _at(positional: list[str], index: int, default: str) -> str:
    return positional[index] if len(positional) > index else default


def _number(items: Sequence[str], text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise _bad(items, f"{text!r} is not a number") from error
    if not math.isfinite(value):
        raise _bad(items, f"{text!r} is not a usable strength")
    return value


def _rank(items: Sequence[str], text: str) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise _bad(items, f"dyn {text!r} is not a whole number") from error
    if value < 1:
        raise _bad(items, f"dyn {text!r} is below 1")
    return value


def _bad(items: Sequence[str], fault: str) -> BadTag:
    return BadTag(f"the tag <lora:{':'.join(items)}> cannot be read: {fault}. Write {FORMS}")
