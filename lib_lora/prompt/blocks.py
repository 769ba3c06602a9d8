"""Block weights: which layer belongs to which slot, and vectors of one weight per slot, as in lora-block-weight."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.keys.unet import DIFFUSERS_TO_LDM, DIFFUSERS_TO_SGM
from lib_lora.prompt.schedule import format_number, parse_number

BASE, MIDDLE = "BASE", "M00"


def _numbered(kind: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{kind}{number:02}" for number in numbers)


IDS = (BASE, *_numbered("IN", *range(12)), MIDDLE, *_numbered("OUT", *range(12)))
FLUX_IDS = ("CLIP", "T5", "IN", *_numbered("D", *range(19)), *_numbered("S", *range(38)), "OUT")
# The blocks with a transformer, which is all that a plain LoRA changes; and all blocks there are.
SD_TRANSFORMERS = (BASE, *_numbered("IN", 1, 2, 4, 5, 7, 8), MIDDLE, *_numbered("OUT", *range(3, 12)))
SDXL_TRANSFORMERS = (BASE, *_numbered("IN", 4, 5, 7, 8), MIDDLE, *_numbered("OUT", *range(6)))
SDXL_ALL = (BASE, *_numbered("IN", *range(9)), MIDDLE, *_numbered("OUT", *range(9)))
LAYOUTS = {len(ids): ids for ids in (SDXL_TRANSFORMERS, SD_TRANSFORMERS, SDXL_ALL, IDS, FLUX_IDS)}
LENGTHS = "12 (SDXL), 17 (SD 1.x and 2.x), 20 (SDXL with convolutions), 26 (SD with convolutions) or 61 (Flux) weights"

_BLOCK = re.compile(r"(input|middle|output)_block(?:s\.(\d+))?\.")
_INHERITED = re.compile(r"X(?:([+-])(.+))?")
RANDOM_RANGES = {"R": (0.0, 1.0), "U": (-0.5, 1.5)}


def ldm_path(path: str) -> str:
    """A UNet layer's path in ldm or sgm; one that they do not have as it is."""
    return DIFFUSERS_TO_LDM.get(path) or DIFFUSERS_TO_SGM.get(path) or path


@lru_cache(maxsize=8192)
def block_of(key: LayerKey) -> str | None:
    """The slot of a layer, which is its block's number in ldm; None for a UNet layer outside the blocks (time, label,
    out). SD1, SD2 and SDXL count alike.
    """
    if key.part != UNET:
        return BASE
    found = _BLOCK.match(ldm_path(key.path))
    if found is None:
        return None
    if found[1] == "middle":
        return MIDDLE
    return f"{'IN' if found[1] == 'input' else 'OUT'}{int(found[2]):02}"


@dataclass(frozen=True)
class BlockWeights:
    """One entry per slot of a layout: a number, or "R" / "U" for a random one in `RANDOM_RANGES`."""

    entries: tuple[float | str, ...]

    @property
    def for_flux(self) -> bool:
        """Whether the slots are those of a Flux transformer, not of a UNet."""
        return len(self.entries) == len(FLUX_IDS)

    def ratios(self, random: Random) -> tuple[float, ...]:
        """A number for each of `IDS`; 0 for blocks that the layout does not have. Random ones have three digits."""
        drawn = (round(random.uniform(*RANDOM_RANGES[e]), 3) if isinstance(e, str) else e for e in self.entries)
        given = dict(zip(LAYOUTS[len(self.entries)], drawn))
        return tuple(given.get(block, 0.0) for block in IDS)

    def __str__(self) -> str:
        return ",".join(entry if isinstance(entry, str) else format_number(entry) for entry in self.entries)


def parse_vector(text: str, x: float = 1.0) -> BlockWeights:
    """The weights of `1,0,R,U,X,X+0.2,...`; `x` stands for X. Raises ValueError with the fault."""
    words = [word.strip() for word in text.split(",")]
    if len(words) not in LAYOUTS:
        raise ValueError(f"{text!r} has {len(words)} weights, not {LENGTHS}")
    return BlockWeights(tuple(_entry(word, x) for word in words))


def _entry(word: str, x: float) -> float | str:
    if word in RANDOM_RANGES:
        return word
    inherited = _INHERITED.fullmatch(word)
    if inherited is None:
        return parse_number(word)
    offset = parse_number(inherited[2]) if inherited[2] else 0.0
    return parse_number(str(x - offset if inherited[1] == "-" else x + offset))


def expand_range(word: str) -> tuple[str, ...]:
    """The ids from `IN05-OUT05`, in either order; any other word as it is. Raises ValueError for unknown ids."""
    first, dash, last = word.partition("-")
    if not dash:
        return (word,)
    for ids in (IDS, FLUX_IDS):
        if first in ids and last in ids:
            low, high = sorted((ids.index(first), ids.index(last)))
            return ids[low : high + 1]
    raise ValueError(f"{word!r} is not a range of blocks such as IN05-OUT05")
