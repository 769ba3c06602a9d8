"""Elements: ratios for layers picked by block and by parts of their names, as lora-block-weight's `lbwe=`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from lib_lora.keys.layer_key import TE2, UNET, LayerKey
from lib_lora.prompt.blocks import block_of, expand_range, ldm_path
from lib_lora.prompt.schedule import format_number, parse_number

NOT = "NOT"
# How open_clip, where SDXL's second text encoder comes from, names what transformers names otherwise.
_OPEN_CLIP = (
    ("encoder_layers", "resblocks"),
    ("self_attn", "attn"),
    ("layer_norm", "ln_"),
    ("mlp_fc1", "mlp_c_fc"),
    ("mlp_fc2", "mlp_c_proj"),
)


@dataclass(frozen=True)
class Rule:
    """Layers whose block is one of `blocks` and whose name holds one of `elements` take `ratio`.

    Words are looked for anywhere in a layer's name (`name_of`); no words mean every layer. `other_...` is NOT: the
    layers that have none of the words.
    """

    blocks: tuple[str, ...]
    elements: tuple[str, ...]
    ratio: float
    other_blocks: bool = False
    other_elements: bool = False

    def matches(self, name: str) -> bool:
        """Whether a layer of this name takes the ratio."""
        return _picked(name, self.blocks, self.other_blocks) and _picked(name, self.elements, self.other_elements)

    def __str__(self) -> str:
        blocks, elements = _words(self.blocks, self.other_blocks), _words(self.elements, self.other_elements)
        return f"{blocks}/{elements}/{format_number(self.ratio)}"


def ratio_of(key: LayerKey, rules: Sequence[Rule], ratio: float) -> float:
    """`ratio`, or that of the last rule which matches the layer."""
    name = name_of(key)
    for rule in rules:
        if rule.matches(name):
            ratio = rule.ratio
    return ratio


def parse_rules(text: str) -> tuple[Rule, ...]:
    """The rules of `blocks:elements:ratio,...`; `/` may stand for `:`, which a tag cannot hold.

    Blocks and elements are words divided by spaces, `IN05-OUT05` is a range, a leading NOT means all others.
    Raises ValueError with the fault.
    """
    rules = []
    for piece in re.split("[,\n]", text):
        if not piece.strip():
            continue
        parts = piece.strip().replace("/", ":").split(":")
        if len(parts) != 3:
            raise ValueError(f"{piece.strip()!r} is not of the form blocks:elements:ratio")
        blocks, other_blocks = _split(parts[0])
        elements, other_elements = _split(parts[1])
        blocks = tuple(block for word in blocks for block in expand_range(word))
        rules.append(Rule(blocks, elements, parse_number(parts[2]), other_blocks, other_elements))
    if not rules:
        raise ValueError("there is no rule blocks:elements:ratio")
    return tuple(rules)


def format_rules(rules: Sequence[Rule]) -> str:
    """The text for a tag that `parse_rules` reads back."""
    return ",".join(map(str, rules))


@lru_cache(maxsize=8192)
def name_of(key: LayerKey) -> str:
    """A layer's name as elements are looked for in it: ldm's path with underscores, then the block's id.

    E.g. `diffusion_model_input_blocks_4_1_transformer_blocks_0_attn2_to_k IN04`. The second text encoder has its
    name in open_clip as well.
    """
    return f"{_ldm_name(key)} {block_of(key) or ''}"


def _ldm_name(key: LayerKey) -> str:
    if key.part == UNET:
        return f"diffusion_model_{ldm_path(key.path).replace('.', '_')}"
    name = f"transformer_{key.flat}"
    if key.part != TE2:
        return name
    other = key.flat.removeprefix("text_model_")
    for ours, theirs in _OPEN_CLIP:
        other = other.replace(ours, theirs)
    return f"{name} transformer_{other}"


def _split(text: str) -> tuple[tuple[str, ...], bool]:
    words = text.split()
    other = words[:1] == [NOT]
    words = words[1:] if other else words
    return tuple(words), other and bool(words)


def _words(words: tuple[str, ...], other: bool) -> str:
    return " ".join((NOT, *words) if other else words)


def _picked(name: str, words: tuple[str, ...], other: bool) -> bool:
    return not words or any(word in name for word in words) != other
