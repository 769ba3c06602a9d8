"""The UNet's module paths: ldm / sgm <-> diffusers, for SD1, SD2 and SDXL, in diffusers' module order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
)
_SHORTCUT = ("skip_connection", "conv_shortcut")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
# One transformer block's modules are named the same on both sides; this is diffusers' order since 0.11.
_BLOCK = (
    "norm1",
    *(f"attn1.{name}" for name in _ATTENTION),
    "norm2",
    *(f"attn2.{name}" for name in _ATTENTION),
    "norm3",
    "ff.net.0.proj",
    "ff.net.2",
)
_NORMS = ("norm", "norm1", "norm2", "norm3", "conv_norm_out")
Pair = tuple[str, str]


@dataclass(frozen=True)
class Layout:
    """What tells one UNet from another: transformer blocks (0: no transformer) of each level on the way down, in the
    middle, and of each level on the way up; and whether it is told sizes (`label_emb`, `add_embedding`)."""

    down: tuple[int, ...]
    mid: int
    up: tuple[int, ...]
    sizes: bool = False


_SD = Layout(down=(1, 1, 1, 0), mid=1, up=(0, 1, 1, 1))
LAYOUTS: Mapping[str, Layout] = {
    "sd1": _SD,
    "sd2": _SD,  # other widths, same modules
    "sdxl": Layout(down=(0, 2, 10), mid=10, up=(10, 2, 0), sizes=True),
}


def _resnet(ldm: str, ours: str, *, shortcut: bool) -> Iterator[Pair]:
    for left, right in (*_RESNET, _SHORTCUT) if shortcut else _RESNET:
        yield f"{ldm}.{left}", f"{ours}.{right}"


def _transformer(ldm: str, ours: str, depth: int) -> Iterator[Pair]:
    blocks = (f"transformer_blocks.{i}.{name}" for i in range(depth) for name in _BLOCK)
    for name in ("norm", "proj_in", *blocks, "proj_out"):
        yield f"{ldm}.{name}", f"{ours}.{name}"


def _down(layout: Layout, level: int) -> Iterator[Pair]:
    first = 1 + 3 * level  # input_blocks.0 is conv_in
    if depth := layout.down[level]:
        for i in range(2):
            yield from _transformer(f"input_blocks.{first + i}.1", f"down_blocks.{level}.attentions.{i}", depth)
    for i in range(2):
        # The width changes at the entry of levels 1 and 2 (320, 640, 1280, 1280).
        widens = i == 0 and level in (1, 2)
        yield from _resnet(f"input_blocks.{first + i}.0", f"down_blocks.{level}.resnets.{i}", shortcut=widens)
    if level < len(layout.down) - 1:
        yield f"input_blocks.{first + 2}.0.op", f"down_blocks.{level}.downsamplers.0.conv"


def _up(layout: Layout, level: int) -> Iterator[Pair]:
    first = 3 * level
    depth = layout.up[level]
    if depth:
        for i in range(3):
            yield from _transformer(f"output_blocks.{first + i}.1", f"up_blocks.{level}.attentions.{i}", depth)
    for i in range(3):
        yield from _resnet(f"output_blocks.{first + i}.0", f"up_blocks.{level}.resnets.{i}", shortcut=True)
    if level < len(layout.up) - 1:
        place = 2 if depth else 1  # after the transformer, where there is one
        yield f"output_blocks.{first + 2}.{place}.conv", f"up_blocks.{level}.upsamplers.0.conv"


def _pairs(layout: Layout) -> Iterator[Pair]:
    yield "input_blocks.0.0", "conv_in"
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    if layout.sizes:
        yield "label_emb.0.0", "add_embedding.linear_1"
        yield "label_emb.0.2", "add_embedding.linear_2"
    for level in range(len(layout.down)):
        yield from _down(layout, level)
    for level in range(len(layout.up)):
        yield from _up(layout, level)
    # diffusers registers mid_block last; cloneofsimo's numbered files depend on that.
    yield from _transformer("middle_block.1", "mid_block.attentions.0", layout.mid)
    yield from _resnet("middle_block.0", "mid_block.resnets.0", shortcut=False)
    yield from _resnet("middle_block.2", "mid_block.resnets.1", shortcut=False)
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"


# By version, diffusers -> ldm / sgm.
NATIVE: Mapping[str, Mapping[str, str]] = {
    version: {ours: ldm for ldm, ours in _pairs(layout)} for version, layout in LAYOUTS.items()
}
DIFFUSERS_TO_LDM: Mapping[str, str] = NATIVE["sd1"]
DIFFUSERS_TO_SGM: Mapping[str, str] = NATIVE["sdxl"]
SGM_TO_DIFFUSERS: Mapping[str, str] = {sgm: ours for ours, sgm in DIFFUSERS_TO_SGM.items()}
# Every version at once: the numbers agree, only depths and the upsamplers' places differ, so no name means two layers.
LDM_TO_DIFFUSERS: Mapping[str, str] = {
    **{ldm: ours for ours, ldm in DIFFUSERS_TO_LDM.items()},
    **SGM_TO_DIFFUSERS,
}
ALL_PATHS = frozenset(LDM_TO_DIFFUSERS.values())


def unet_paths(version: str = "sd1") -> tuple[str, ...]:
    """Every module of that version's UNet that has a weight, canonical, in diffusers' module order."""
    return tuple(NATIVE[version])


def transformer_targets(version: str = "sd1") -> tuple[str, ...]:
    """The layers kohya trains by default: Linear and 1x1 convolutions inside the transformers (192; SDXL 722)."""
    return tuple(p for p in NATIVE[version] if ".attentions." in p and p.rpartition(".")[2] not in _NORMS)


def conv_targets(version: str = "sd1") -> tuple[str, ...]:
    """The further layers of LoCon (86; SDXL 66): what ResnetBlock2D, Downsample2D and Upsample2D are made of."""
    rooms = (".resnets.", ".downsamplers.", ".upsamplers.")
    return tuple(p for p in NATIVE[version] if any(r in p for r in rooms) and p.rpartition(".")[2] not in _NORMS)
