"""The SD VAE's module paths: ldm (CompVis) <-> diffusers."""

from __future__ import annotations

from collections.abc import Iterator

_ATTENTION = (
    ("norm", "group_norm"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
)
LEVELS = 4
Pair = tuple[str, str]


def _resnet(ldm: str, ours: str, *, shortcut: bool = False) -> Iterator[Pair]:
    for name in ("norm1", "conv1", "norm2", "conv2"):
        yield f"{ldm}.{name}", f"{ours}.{name}"
    if shortcut:
        yield f"{ldm}.nin_shortcut", f"{ours}.conv_shortcut"


def _mid(half: str) -> Iterator[Pair]:
    for left, right in _ATTENTION:
        yield f"{half}.mid.attn_1.{left}", f"{half}.mid_block.attentions.0.{right}"
    yield from _resnet(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0")
    yield from _resnet(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1")


def _encoder() -> Iterator[Pair]:
    yield "encoder.conv_in", "encoder.conv_in"
    for level in range(LEVELS):
        ldm, ours = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        for i in range(2):
            yield from _resnet(f"{ldm}.block.{i}", f"{ours}.resnets.{i}", shortcut=i == 0 and level in (1, 2))
        if level < LEVELS - 1:
            yield f"{ldm}.downsample.conv", f"{ours}.downsamplers.0.conv"
    yield from _mid("encoder")
    yield "encoder.norm_out", "encoder.conv_norm_out"
    yield "encoder.conv_out", "encoder.conv_out"


def _decoder() -> Iterator[Pair]:
    yield "decoder.conv_in", "decoder.conv_in"
    for level in range(LEVELS):
        # ldm counts the decoder's levels by resolution, diffusers by order of use.
        ldm, ours = f"decoder.up.{LEVELS - 1 - level}", f"decoder.up_blocks.{level}"
        for i in range(3):
            yield from _resnet(f"{ldm}.block.{i}", f"{ours}.resnets.{i}", shortcut=i == 0 and level in (2, 3))
        if level < LEVELS - 1:
            yield f"{ldm}.upsample.conv", f"{ours}.upsamplers.0.conv"
    yield from _mid("decoder")
    yield "decoder.norm_out", "decoder.conv_norm_out"
    yield "decoder.conv_out", "decoder.conv_out"


def _pairs() -> Iterator[Pair]:
    yield from _encoder()
    yield from _decoder()
    yield "quant_conv", "quant_conv"
    yield "post_quant_conv", "post_quant_conv"


LDM_TO_DIFFUSERS: dict[str, str] = dict(_pairs())
DIFFUSERS_TO_LDM: dict[str, str] = {ours: ldm for ldm, ours in LDM_TO_DIFFUSERS.items()}
# 1x1 convolutions in ldm, Linear in diffusers: same numbers, two more axes.
CONV_IN_LDM = frozenset(p for p in DIFFUSERS_TO_LDM if ".attentions.0.to_" in p)


def vae_paths() -> tuple[str, ...]:
    """Every module of the VAE that has a weight, canonical."""
    return tuple(DIFFUSERS_TO_LDM)
