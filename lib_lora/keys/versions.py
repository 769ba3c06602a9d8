"""For which base model a network's names and widths speak. Never trusts metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable

SD1, SD2, SDXL, FLUX, SD3, UNKNOWN = "sd1", "sd2", "sdxl", "flux", "sd3", "unknown"
_TITLES = {SD1: "SD 1.x", SD2: "SD 2.x", SDXL: "SDXL", FLUX: "Flux", SD3: "SD 3", UNKNOWN: "an unknown model"}
# Only SDXL's transformers are deeper than one block.
_SDXL_NAMES = re.compile(
    r"lora_te[12]_|text_encoder_2|te2:|(?:attentions|middle_block|_blocks)[._]\d+[._](?:\d+[._])?transformer_blocks[._][1-9]"
    r"|add_embedding|label_emb"
)
_FLUX_NAMES = re.compile(r"double_blocks|single_blocks|single_transformer_blocks")
_SD3_NAMES = re.compile(r"joint_blocks|joint_transformer_blocks")
_WIDTHS = {768: SD1, 1024: SD2, 2048: SDXL}


def by_names(names: Iterable[str]) -> str | None:
    """The version only these layer names can mean, or None if SD1 and SD2 would have them too."""
    for name in names:
        for pattern, version in ((_SDXL_NAMES, SDXL), (_FLUX_NAMES, FLUX), (_SD3_NAMES, SD3)):
            if pattern.search(name):
                return version
    return None


def by_widths(widths: Iterable[int]) -> str | None:
    """The version with this width of text states (cross-attention keys' input), or None."""
    return next((_WIDTHS[width] for width in widths if width in _WIDTHS), None)


def title(version: str) -> str:
    """The version as people write it."""
    return _TITLES.get(version, version)
