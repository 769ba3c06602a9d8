"""Which dialect a file speaks, and where each of its tensors belongs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from lib_lora.keys import cloneofsimo, dotted, kohya, versions
from lib_lora.keys.layer_key import UNET, LayerKey

KOHYA, CLONEOFSIMO = "kohya", "cloneofsimo"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """A file's names, understood.

    `layers[key][tensor]` is the name in the file, e.g. `layers[key]["lora_up.weight"]`. `unknown` are the names
    nobody understood, `embeddings` bundled token embeddings, which are no layers. `dialect` is that of most names.
    """

    dialect: str
    layers: Mapping[LayerKey, Mapping[str, str]]
    unknown: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = field(default=())


def place(shapes: Mapping[str, Shape], metadata: Mapping[str, str] | None = None) -> Reading:
    """Give every tensor of a file its layer. `shapes` are the tensors' shapes by name."""
    embeddings = tuple(n for n in shapes if (metadata or {}).get(n) == cloneofsimo.EMBEDDING)
    numbered = cloneofsimo.place({n: s for n, s in shapes.items() if cloneofsimo.speaks(n)})
    # SDXL shares names with SD1 for layers of other widths, so its UNet must not be half matched.
    other_model = versions.by_names(shapes) is not None
    layers: dict[LayerKey, dict[str, str]] = {}
    unknown: list[str] = []
    spoken: Counter[str] = Counter()
    for name in shapes:
        if name in embeddings:
            continue
        placed, dialect = _parse(name, numbered)
        if placed is None or (other_model and placed[0].part == UNET) or placed[1] in layers.get(placed[0], {}):
            unknown.append(name)
            continue
        layers.setdefault(placed[0], {})[placed[1]] = name
        spoken[dialect] += 1
    dialect = spoken.most_common(1)[0][0] if spoken else _dialect_of_strangers(unknown)
    return Reading(dialect, layers, tuple(unknown), embeddings)


def _parse(name: str, numbered: Mapping[str, tuple[LayerKey, str]]) -> tuple[tuple[LayerKey, str] | None, str]:
    if name in numbered:
        return numbered[name], CLONEOFSIMO
    if kohya.speaks(name):
        return kohya.parse(name), KOHYA
    return dotted.parse(name) or (None, "")


def _dialect_of_strangers(names: list[str]) -> str:
    """The dialect of a file for another base model: prefixes are known even where layers are not."""
    return KOHYA if any(kohya.speaks(n) for n in names) else ""
