"""A network: the content of one file, under canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lib_lora.keys.layer_key import LayerKey
from lib_lora.networks.base import Layer


@dataclass(frozen=True)
class Network:
    """Layers by canonical key, with the file's metadata and the names in it that nobody understood.

    `embeddings[token][encoder]` are the vectors (n, width) of a token that the file brings along. `encoder` is "clip_l"
    for the first text encoder, whichever it is (width 768 in SD1 and SDXL, 1024 in SD2), "clip_g" (1280) for SDXL's
    second. `version` is the base model it was trained on ("sd1", "sd2", "sdxl") where that is known for certain: a file
    says it by its tensors' names and shapes only.
    """

    name: str
    layers: Mapping[LayerKey, Layer]
    metadata: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    dialect: str = ""
    embeddings: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    version: str = ""

    def parts(self) -> dict[str, int]:
        """How many layers each part has, e.g. {"unet": 192, "te1": 72}."""
        counts: dict[str, int] = {}
        for key in self.layers:
            counts[key.part] = counts.get(key.part, 0) + 1
        return counts
