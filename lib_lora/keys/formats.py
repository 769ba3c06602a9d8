"""Which dialect a file speaks, and where each of its tensors belongs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from lib_lora.keys import cloneofsimo, embeddings, modules, shapes, tensor_names
from lib_lora.keys.layer_key import TE1, TE2, LayerKey

KOHYA, DIFFUSERS, PEFT, BARE, CLONEOFSIMO = "kohya", "diffusers", "peft", "bare", "cloneofsimo"
Shape = tuple[int, ...]
_NO_PART = ("", "lycoris")  # prefixes of files of one model, which do not say which
_DEPTH = 4  # a tensor's name has at most so many parts behind its module: base_layer.lora_A.default.weight


@dataclass(frozen=True)
class Reading:
    """A file's names, understood.

    `layers[key][tensor]` is the name in the file, e.g. `layers[key]["lora_up.weight"]`. `embeddings[token][encoder]`
    are bundled token embeddings, which are no layers, see `keys.embeddings`. `unknown` are the names nobody
    understood. `peft` are the layers whose scale PEFT keeps outside the tensors. `dialect` is that of most names.
    """

    dialect: str
    layers: Mapping[LayerKey, Mapping[str, str]]
    unknown: tuple[str, ...] = ()
    embeddings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    peft: frozenset[LayerKey] = frozenset()


@dataclass(frozen=True)
class Placed:
    """One tensor of a file. `module` is the spelling of its module, `bare` that no prefix told the part."""

    key: LayerKey
    tensor: str
    dialect: str
    module: str
    bare: bool = False


@dataclass
class _Sorting:
    """A reading in the making."""

    layers: dict[LayerKey, dict[str, str]] = field(default_factory=dict)
    spelled: dict[LayerKey, str] = field(default_factory=dict)  # the module name that came first
    unknown: list[str] = field(default_factory=list)
    spoken: Counter[str] = field(default_factory=Counter)
    peft: set[LayerKey] = field(default_factory=set)
    bare: set[LayerKey] = field(default_factory=set)

    def add(self, name: str, placed: Placed | None) -> None:
        # One layer under two names cannot be one layer's tensors: the first name keeps it, the other is told.
        if (
            placed is None
            or self.spelled.setdefault(placed.key, placed.module) != placed.module
            or placed.tensor in self.layers.get(placed.key, {})
        ):
            self.unknown.append(name)
            return
        self.layers.setdefault(placed.key, {})[placed.tensor] = name
        self.spoken[placed.dialect] += 1
        if placed.dialect == PEFT:
            self.peft.add(placed.key)
        if placed.bare:
            self.bare.add(placed.key)


def place(names: Mapping[str, Shape], metadata: Mapping[str, str] | None = None) -> Reading:
    """Give every tensor of a file its layer. `names` are the tensors' shapes by name. Never raises."""
    bundled = embeddings.find(names, metadata or {})
    taken = {name for vectors in bundled.values() for name in vectors.values()}
    numbered = cloneofsimo.place({n: s for n, s in names.items() if cloneofsimo.speaks(n)})
    sorting = _Sorting()
    for name in names:
        if name in taken:
            continue
        if name in numbered:
            key, tensor = numbered[name]
            sorting.add(name, Placed(key, tensor, CLONEOFSIMO, name.rpartition(":")[0]))
        else:
            sorting.add(name, parse(name))
    layers, peft = sorting.layers, sorting.peft
    if _second_encoder(sorting, names):
        layers = {_moved(key, sorting.bare): tensors for key, tensors in layers.items()}
        peft = {_moved(key, sorting.bare) for key in peft}
    spoken = sorting.spoken
    kohya_like = any(modules.has_kohya_prefix(name) for name in sorting.unknown)
    dialect = spoken.most_common(1)[0][0] if spoken else (KOHYA if kohya_like else "")
    return Reading(dialect, layers, tuple(sorting.unknown), bundled, frozenset(peft))


def parse(name: str) -> Placed | None:
    """Where a tensor of this name belongs, cloneofsimo's numbers aside; None if no model has such a layer."""
    tidied = tensor_names.tidy(name)
    parts = tidied.name.split(".")
    for depth in range(1, min(_DEPTH, len(parts) - 1) + 1):
        module = modules.find(".".join(parts[:-depth]))
        if module is None:
            continue
        kohya = module.style == modules.KOHYA
        wrapped = tidied.dialect == PEFT
        translated = tensor_names.translate(".".join(parts[-depth:]), wrapped, kohya)
        if translated is None:
            return None
        tensor, told = translated
        if tensor == "alpha" and module.prefix.startswith("oft"):
            tensor = "constraint"  # kohya's OFT calls its constraint alpha, and means by 0 that nothing may move
        dialect = told or tidied.dialect or module.style
        return Placed(module.key, tensor, dialect, module.spelling, module.prefix in _NO_PART)
    return None


def _second_encoder(sorting: _Sorting, names: Mapping[str, Shape]) -> bool:
    """Whether text layers without a part in their names are SDXL's second encoder's: only that is so wide."""
    layers = ((key, sorting.layers[key]) for key in sorting.bare if key.part == TE1 and key in sorting.layers)
    return any(
        shapes.text_width(key, {tensor: names[name] for tensor, name in tensors.items()}) == shapes.CLIP_G
        for key, tensors in layers
    )


def _moved(key: LayerKey, bare: set[LayerKey]) -> LayerKey:
    return LayerKey(TE2, key.path) if key in bare and key.part == TE1 else key
