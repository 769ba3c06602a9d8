"""Files of a model whose layers are known by name: no tables, no guessing, any path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from lib_lora.keys import tensor_names
from lib_lora.keys.formats import BARE, PEFT, Reading
from lib_lora.keys.layer_key import LayerKey

_WRAPPER = "base_model.model."  # PEFT's


def place(names: Iterable[str], known: Mapping[str, LayerKey]) -> Reading:
    """Give every tensor the layer whose name in `known` it begins with: `blocks.0.w_q.lora_up.weight`.

    Tensors may be called as by kohya or by PEFT (`lora_A.weight`), with or without PEFT's `base_model.model.`.
    """
    layers: dict[LayerKey, dict[str, str]] = {}
    unknown: list[str] = []
    spoken: Counter[str] = Counter()
    peft: set[LayerKey] = set()
    for name in names:
        found = _find(name, known)
        if found is None or found[1] in layers.get(found[0], {}):
            unknown.append(name)
            continue
        key, tensor, dialect = found
        layers.setdefault(key, {})[tensor] = name
        spoken[dialect] += 1
        if dialect == PEFT:
            peft.add(key)
    return Reading(spoken.most_common(1)[0][0] if spoken else "", layers, tuple(unknown), {}, frozenset(peft))


def _find(name: str, known: Mapping[str, LayerKey]) -> tuple[LayerKey, str, str] | None:
    """(layer, canonical tensor, dialect); of several layers the one with the longest name."""
    wrapped = name.startswith(_WRAPPER)
    plain = name.removeprefix(_WRAPPER)
    end = len(plain)
    while (end := plain.rfind(".", 0, end)) > 0:
        key = known.get(plain[:end])
        if key is None:
            continue
        translated = tensor_names.translate(plain[end + 1 :], wrapped, kohya=not wrapped)
        return (key, translated[0], translated[1] or (PEFT if wrapped else BARE)) if translated else None
    return None
