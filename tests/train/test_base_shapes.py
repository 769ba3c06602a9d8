"""Shapes of bases against diffusers' and transformers' own modules, made without memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey
from lib_lora.miniature.nets import UNET_CONFIG
from lib_lora.train.base_shapes import BASES, BaseShapes, Widths
from lib_lora.train.sections import NetworkSection
from lib_lora.train.targets import target_keys

SD: dict[str, Any] = {**UNET_CONFIG, "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {**SD, "cross_attention_dim": 768},
    "sd2": {**SD, "cross_attention_dim": 1024, "use_linear_projection": True},
    "sdxl": {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
TEXTS = {"sd1": [(TE1, 768, 12, 0)], "sd2": [(TE1, 1024, 23, 0)], "sdxl": [(TE1, 768, 12, 0), (TE2, 1280, 32, 1280)]}


def shapes_of(module: torch.nn.Module, part: str) -> dict[tuple[LayerKey, str], tuple[int, ...]]:
    found = {}
    for name, tensor in module.state_dict().items():
        path, _, kind = name.rpartition(".")
        if kind in ("weight", "bias"):
            found[LayerKey(part, path), kind] = tuple(tensor.shape)
    return found


def own(shapes: BaseShapes, part: str) -> dict[tuple[LayerKey, str], tuple[int, ...]]:
    return {
        (key, name): tuple(parameter.shape)
        for key, slot in shapes.slots().items()
        if key.part == part
        for name, parameter in slot.module.named_parameters()
    }


@pytest.mark.parametrize("version", list(BASES))
def test_the_unet_is_diffusers(version: str) -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[version])
    shapes = BaseShapes(BASES[version])
    assert own(shapes, UNET) == shapes_of(unet, UNET)
    assert shapes.numbers(UNET) == sum(p.numel() for p in unet.parameters())


@pytest.mark.parametrize("version", list(BASES))
def test_the_text_encoders_are_transformers(version: str) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    shapes = BaseShapes(BASES[version])
    for part, hidden, layers, projection in TEXTS[version]:
        config = CLIPTextConfig(
            hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers, projection_dim=projection or 512
        )
        with torch.device("meta"):
            module = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
        assert own(shapes, part) == shapes_of(module, part)


def test_the_miniature_is_of_the_same_kind() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET_CONFIG)
    widths = Widths("sd1", (64, 128, 64, 64), 64, (64,), linear=False)
    assert own(BaseShapes(widths), UNET) == shapes_of(unet, UNET)


@pytest.mark.parametrize(("version", "count"), [("sd1", 192 + 72), ("sd2", 192 + 138), ("sdxl", 722 + 72)])
def test_jobs_choose_layers_there_as_on_a_model(version: str, count: int) -> None:
    network = NetworkSection(train_text_encoder=True)
    assert len(target_keys(BaseShapes(BASES[version]), network)) == count


def test_only_some_layers() -> None:
    key = LayerKey(UNET, "conv_in")
    assert list(BaseShapes(BASES["sd1"], frozenset({key})).slots()) == [key]
