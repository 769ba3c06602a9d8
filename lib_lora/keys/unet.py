"""The SD1 UNet's module paths: ldm (CompVis) <-> diffusers, in diffusers' module order."""

from __future__ import annotations

from collections.abc import Iterator

_RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
)
_SHORTCUT = ("skip_connection", "conv_shortcut")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
# One transformer's modules are named the same on both sides; this is diffusers' order since 0.11.
_TRANSFORMER = (
    "norm",
    "proj_in",
    "transformer_blocks.0.norm1",
    *(f"transformer_blocks.0.attn1.{name}" for name in _ATTENTION),
    "transformer_blocks.0.norm2",
    *(f"transformer_blocks.0.attn2.{name}" for name in _ATTENTION),
    "transformer_blocks.0.norm3",
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.0.ff.net.2",
    "proj_out",
)
_NORMS = ("norm", "norm1", "norm2", "norm3", "conv_norm_out")
LEVELS = 4
Pair = tuple[str, str]


def _resnet(ldm: str, ours: str, *, shortcut: bool) -> Iterator[Pair]:
    for left, right in (*_RESNET, _SHORTCUT) if shortcut else _RESNET:
        yield f"{ldm}.{left}", f"{ours}.{right}"


def _transformer(ldm: str, ours: str) -> Iterator[Pair]:
    for name in _TRANSFORMER:
        yield f"{ldm}.{name}", f"{ours}.{name}"


def _down(level: int) -> Iterator[Pair]:
    first = 1 + 3 * level  # input_blocks.0 is conv_in
    if level < LEVELS - 1:
        for i in range(2):
            yield from _transformer(f"input_blocks.{first + i}.1", f"down_blocks.{level}.attentions.{i}")
    for i in range(2):
        # The width changes at the entry of levels 1 and 2 (320, 640, 1280, 1280).
        widens = i == 0 and level in (1, 2)
        yield from _resnet(f"input_blocks.{first + i}.0", f"down_blocks.{level}.resnets.{i}", shortcut=widens)
    if level < LEVELS - 1:
        yield f"input_blocks.{first + 2}.0.op", f"down_blocks.{level}.downsamplers.0.conv"


def _up(level: int) -> Iterator[Pair]:
    first = 3 * level
    if level > 0:
        for i in range(3):
            yield from _transformer(f"output_blocks.{first + i}.1", f"up_blocks.{level}.attentions.{i}")
    for i in range(3):
        yield from _resnet(f"output_blocks.{first + i}.0", f"up_blocks.{level}.resnets.{i}", shortcut=True)
    if level < LEVELS - 1:
        place = 1 if level == 0 else 2  # after the transformer, where there is one
        yield f"output_blocks.{first + 2}.{place}.conv", f"up_blocks.{level}.upsamplers.0.conv"


def _pairs() -> Iterator[Pair]:
    yield "input_blocks.0.0", "conv_in"
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    for level in range(LEVELS):
        yield from _down(level)
    for level in range(LEVELS):
        yield from _up(level)
    # diffusers registers mid_block last; cloneofsimo's numbered files depend on that.
    yield from _transformer("middle_block.1", "mid_block.attentions.0")
    yield from _resnet("middle_block.0", "mid_block.resnets.0", shortcut=False)
    yield from _resnet("middle_block.2", "mid_block.resnets.1", shortcut=False)
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"


LDM_TO_DIFFUSERS: dict[str, str] = dict(_pairs())
DIFFUSERS_TO_LDM: dict[str, str] = {ours: ldm for ldm, ours in LDM_TO_DIFFUSERS.items()}


def unet_paths() -> tuple[str, ...]:
    """Every module of the SD1 UNet that has a weight, canonical, in diffusers' module order."""
    return tuple(DIFFUSERS_TO_LDM)


def transformer_targets() -> tuple[str, ...]:
    """The 192 layers kohya trains by default: Linear and 1x1 convolutions inside the 16 transformers."""
    return tuple(p for p in DIFFUSERS_TO_LDM if ".attentions." in p and p.rpartition(".")[2] not in _NORMS)


def conv_targets() -> tuple[str, ...]:
    """The 86 further layers of LoCon: what ResnetBlock2D, Downsample2D and Upsample2D are made of."""
    rooms = (".resnets.", ".downsamplers.", ".upsamplers.")
    return tuple(p for p in DIFFUSERS_TO_LDM if any(r in p for r in rooms) and p.rpartition(".")[2] not in _NORMS)
