"""What PEFT keeps outside the tensors: scale and conventions, from `adapter_config.json` or diffusers' metadata.

The numbers become constants of layers, under the names that network types know; only they are taken, never the type or
the base model, which names and shapes tell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey
from lib_lora.keys.shapes import Shape

METADATA = "lora_adapter_metadata"  # diffusers 0.34 and later: one JSON object, names with the part before a dot
_PARTS = {UNET: "unet.", TE1: "text_encoder.", TE2: "text_encoder_2."}
# Of each type the tensor whose first axis is the rank.
_RANKS = ("lora_down.weight", "lora_embedding_A", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
Config = Mapping[str, Any]


def from_metadata(metadata: Mapping[str, str]) -> dict[str, Config]:
    """`{part: configuration}` from a file's metadata; empty if it says nothing that can be understood."""
    content = parse(metadata.get(METADATA, ""))
    found = {
        part: {k[len(prefix) :]: v for k, v in content.items() if k.startswith(prefix)}
        for part, prefix in _PARTS.items()
    }
    return {part: config for part, config in found.items() if config}


def parse(text: str) -> Config:
    """A JSON object, or an empty one for anything else."""
    try:
        content = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def constants(config: Config, key: LayerKey, tensors: Mapping[str, Shape]) -> dict[str, float]:
    """Extra 0-d tensors of one layer. `tensors` are its tensors' shapes by kohya's names.

    `alpha` such that alpha / rank is PEFT's scale: `lora_alpha / r`, with rsLoRA `lora_alpha / sqrt(r)`. `scalar` is
    that scale itself, for a LoKr without a rank. For OFT the figures that `networks.peft_oft` describes.
    """
    if "oft_R" in tensors or "oft_r" in tensors:
        return _oft(config, "oft_R" in tensors)
    if "alpha" in tensors:
        return {}
    rank = next((tensors[name][0] for name in _RANKS if tensors.get(name)), 0)
    alpha = _number(_by_pattern(config.get("alpha_pattern"), key.path, config.get("lora_alpha", config.get("alpha"))))
    lokr = any(name.startswith("lokr") for name in tensors)
    if alpha is None or (lokr and "rank_dropout_scale" not in config):
        return {}  # PEFT forgot the scale of LoKr until the version that has this setting
    if lokr and not rank:  # two whole factors: their type knows no scale
        rank_named = _number(_by_pattern(config.get("rank_pattern"), key.path, config.get("r")))
        return {"scalar": alpha / rank_named} if rank_named and alpha != rank_named else {}
    if not rank:
        return {}
    return {"alpha": alpha * math.sqrt(rank) if config.get("use_rslora") is True else alpha}


def _oft(config: Config, series: bool) -> dict[str, float]:
    figures: dict[str, float] = {}
    eps, terms = _number(config.get("eps")), _number(config.get("num_cayley_neumann_terms"))
    if config.get("coft") is True and eps is not None:
        figures["coft_eps"] = eps
    if series and config.get("use_cayley_neumann") is False:
        figures["neumann_terms"] = 0.0
    elif series and "use_cayley_neumann" in config:
        figures["neumann_terms"] = terms or 5.0
        # The version has been written since 0.18, the one that mended the series' last term.
        figures["neumann_last"] = 1.0 if "peft_version" in config else 2.0
    return figures


def _by_pattern(patterns: object, path: str, default: object) -> object:
    """The value of the first name that is the end of the path.

    PEFT takes names for expressions. Here they are compared as they are: an expression out of a file that somebody
    made on purpose could keep the program busy for good.
    """
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        name = str(pattern).lstrip("^")
        if path == name or path.endswith(f".{name}"):
            return value
    return default


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
