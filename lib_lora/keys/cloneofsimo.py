"""cloneofsimo's files: layers are numbered in module-walk order, `unet:0:up`, `text_encoder:0:down`.

Its first files were pickled lists without names, the UNet's and the text encoder's in a file each; numbered in their
order they are this dialect too, and shapes tell whose list it is.

The walk takes the Linear children of CrossAttention, Attention and GEGLU (the "extended" files also all of
ResnetBlock2D). Which number is which layer depends on the diffusers version that wrote the file: until 0.11 a
block registered attn1, ff, attn2; later attn1, attn2, ff. Shapes tell: GEGLU is the one layer 8 times as wide.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from lib_lora.keys import text_encoder, unet
from lib_lora.keys.layer_key import TE1, UNET, LayerKey

Shape = tuple[int, ...]
_NAME = re.compile(r"(unet|text_encoder):(0|[1-9][0-9]{0,2}):(up|down)")
_PARTS = {"unet": UNET, "text_encoder": TE1}
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
_ATTN1, _ATTN2 = (tuple(f"{attention}.{name}" for name in _PROJECTIONS) for attention in ("attn1", "attn2"))
_GEGLU = "ff.net.0.proj"
_MOST_BLOCKS = max(blocks[TE1] for blocks in text_encoder.LAYERS.values())
_ORDERS = ((*_ATTN1, _GEGLU, *_ATTN2), (*_ATTN1, *_ATTN2, _GEGLU))


def _walk(names: tuple[str, ...], *, resnets: bool) -> tuple[str, ...]:
    """UNet layers in the order of one writer; `names` is the order inside a transformer block."""
    walk: list[str] = []
    convolutions = set(unet.conv_targets()) if resnets else set()
    for path in unet.unet_paths():
        if path.endswith(".attn1.to_q"):
            block = path.removesuffix("attn1.to_q")
            walk += [block + name for name in names]
        elif path in convolutions and ".resnets." in path:
            walk.append(path)
    return tuple(walk)


def _fits(path: str, up: Shape, down: Shape) -> bool:
    """Whether factors of these shapes can belong to `path`, whatever the model's width."""
    if len(up) < 2 or len(down) < 2:
        return False
    convolution = path.rpartition(".")[2] in ("conv1", "conv2", "conv_shortcut")
    if convolution != (len(down) == 4):
        return False
    width_out, width_in = up[0], down[1]
    if path.endswith(_GEGLU):
        return width_out == 8 * width_in
    if ".attn1." in path or path.endswith(("attn2.to_q", "attn2.to_out.0")) or ".self_attn." in path:
        return width_out == width_in
    return True


def _unet_order(shapes: Mapping[int, tuple[Shape, Shape]]) -> tuple[str, ...]:
    """The walk under which every numbered pair of factors fits; the fullest match first, () if none does."""
    walks = [_walk(names, resnets=resnets) for resnets in (False, True) for names in _ORDERS]
    fitting = [w for w in walks if all(i < len(w) and _fits(w[i], *pair) for i, pair in shapes.items())]
    return min(fitting, key=lambda w: abs(len(w) - len(shapes)), default=())


def _text_order(shapes: Mapping[int, tuple[Shape, Shape]]) -> tuple[str, ...]:
    """The attention projections of as many blocks as the numbers reach."""
    return text_encoder.attention_targets(-(-(max(shapes, default=-1) + 1) // 4))


def layer_number(key: LayerKey, extended: bool, newer: bool = True) -> tuple[str, int] | None:
    """`("unet" or "text_encoder", number)` of a layer, or None if this dialect has no number for it.

    `extended` counts the ResnetBlock2Ds in; `newer` is the order inside a block since diffusers 0.12.
    """
    if key.part == UNET:
        order = _walk(_ORDERS[1 if newer else 0], resnets=extended)
        return ("unet", order.index(key.path)) if key.path in order else None
    order = text_encoder.attention_targets(_MOST_BLOCKS)
    return ("text_encoder", order.index(key.path)) if key.part == TE1 and key.path in order else None


def count(group: str, extended: bool, version: str) -> int:
    """How many numbers a whole file has in a group, "unet" or "text_encoder"."""
    if group == "unet":
        return len(_walk(_ORDERS[1], resnets=extended))
    return len(text_encoder.attention_targets(text_encoder.LAYERS[version][TE1]))


def speaks(name: str) -> bool:
    """Whether `name` is a numbered factor of this dialect."""
    return _NAME.fullmatch(name) is not None


def place(shapes: Mapping[str, Shape]) -> dict[str, tuple[LayerKey, str]]:
    """`{tensor name: (layer, "lora_up.weight" or "lora_down.weight")}` for a file's names and shapes.

    A number with only one of its two factors, and numbers past the model's end, are left out.
    """
    numbers = _numbers(shapes)
    placed: dict[str, tuple[LayerKey, str]] = {}
    for group, part in _PARTS.items():
        pairs = {i: (shapes[f"{group}:{i}:up"], shapes[f"{group}:{i}:down"]) for i in numbers.get(group, ())}
        order = _unet_order(pairs) if part == UNET else _text_order(pairs)
        if part == UNET and not order and "text_encoder" not in numbers:
            part, order = TE1, _text_order(pairs)  # a list alone does not say whose it is
        for i, (up, down) in pairs.items():
            if i < len(order) and _fits(order[i], up, down):
                placed[f"{group}:{i}:up"] = LayerKey(part, order[i]), "lora_up.weight"
                placed[f"{group}:{i}:down"] = LayerKey(part, order[i]), "lora_down.weight"
    return placed


def _numbers(names: Iterable[str]) -> dict[str, list[int]]:
    """The numbers of each group that have both factors, in order."""
    seen: dict[tuple[str, int], int] = {}
    for name in names:
        if found := _NAME.fullmatch(name):
            where = found[1], int(found[2])
            seen[where] = seen.get(where, 0) + 1
    complete: dict[str, list[int]] = {}
    for (group, i), count in sorted(seen.items()):
        if count == 2:
            complete.setdefault(group, []).append(i)
    return complete
