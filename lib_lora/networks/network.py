"""A network: the content of one file, under canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lib_lora.keys.layer_key import LayerKey
from lib_lora.networks.base import Layer


@dataclass(frozen=True)
class Network:
    """Layers by canonical key, with the file's metadata and the names in it that nobody understood."""

    name: str
    layers: Mapping[LayerKey, Layer]
    metadata: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    dialect: str = ""

    def parts(self) -> dict[str, int]:
        """How many layers each part has, e.g. {"unet": 192, "te1": 72}."""
        counts: dict[str, int] = {}
        for key in self.layers:
            counts[key.part] = counts.get(key.part, 0) + 1
        return counts
