"""The real models' modules on the meta device: what the key tables are held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from lib_lora.models.diffusers_model import text_root

_SD: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": _SD,
    "sd2": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    "sdxl": {
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
# (version, part): blocks, width, width of the MLP, width of the projection
TEXTS = {
    ("sd1", "te1"): (12, 768, 3072, 768),
    ("sd2", "te1"): (23, 1024, 4096, 512),
    ("sdxl", "te1"): (12, 768, 3072, 768),
    ("sdxl", "te2"): (32, 1280, 5120, 1280),
}
PARTS = tuple((version, "unet") for version in UNETS) + tuple(TEXTS)


@dataclass(frozen=True)
class Model:
    """One part of a base model: its modules that have a parameter, by canonical path, in module order."""

    version: str
    part: str
    shapes: dict[str, tuple[int, ...]]  # of the weights
    leaves: dict[str, str]  # the class of each module
    ancestors: dict[str, tuple[str, ...]]  # the classes of the modules round it, outermost first


def _model(version: str, part: str, root: nn.Module, prefix: str = "") -> Model:
    shapes = {prefix + n.removesuffix(".weight"): tuple(p.shape) for n, p in root.named_parameters() if ".weight" in n}
    modules = dict(root.named_modules())
    leaves, ancestors = {}, {}
    for path in shapes:
        own = path.removeprefix(prefix) if prefix else path
        steps = own.split(".")
        leaves[path] = type(modules[own]).__name__
        ancestors[path] = tuple(type(modules[".".join(steps[:i])]).__name__ for i in range(1, len(steps)))
    return Model(version, part, shapes, leaves, ancestors)


def _unet(version: str) -> Model:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return _model(version, "unet", UNet2DConditionModel(**UNETS[version]))


def _text(version: str, part: str) -> Model:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    blocks, width, inner, projected = TEXTS[version, part]
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        projection_dim=projected,
    )
    with torch.device("meta"):
        whole = CLIPTextModelWithProjection(config) if part == "te2" else CLIPTextModel(config)
    model = _model(version, part, text_root(whole), "text_model.")
    if part == "te2":
        model.shapes["text_projection"] = tuple(whole.text_projection.weight.shape)
        model.leaves["text_projection"] = type(whole.text_projection).__name__
        model.ancestors["text_projection"] = ()
    return model


@pytest.fixture(scope="session")
def base_model() -> Callable[[str, str], Model]:
    """`base_model("sdxl", "te2")`: a part of a base model, built once."""
    built: dict[tuple[str, str], Model] = {}

    def build(version: str, part: str) -> Model:
        if (version, part) not in built:
            built[version, part] = _unet(version) if part == "unet" else _text(version, part)
        return built[version, part]

    return build


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table dialect x version; nothing if none of these tests ran."""
    from tests.keys.dialects import MATCHED

    if MATCHED:
        terminalreporter.section("layers matched / expected")
    for (dialect, version, part), (matched, expected) in MATCHED.items():
        terminalreporter.write_line(f"{dialect:24} {version:5} {part:5} {matched:5} / {expected}")
