"""Fixtures every room shares: a tiny random model of SD1's topology, and the same as a checkpoint file."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lib_lora.miniature.nets import TEXT_CONFIG, UNET_CONFIG, VAE_CONFIG
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.models.tokenizer import load_tokenizer, write_clip_folder

TINY_UNET: dict[str, Any] = {**UNET_CONFIG, "block_out_channels": (32, 64, 32, 32), "cross_attention_dim": 32}
TINY_VAE: dict[str, Any] = {**VAE_CONFIG, "block_out_channels": (32, 64, 32, 32)}
TINY_TEXT: dict[str, Any] = {**TEXT_CONFIG, "hidden_size": 32, "intermediate_size": 64, "projection_dim": 32}


def fill_zeros(module: nn.Module, seed: int) -> None:
    """Give parameters that start at exactly 0 small random values, so that every layer has an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP folder (tokenizer files and config.json) for the tiny text encoder."""
    return write_clip_folder(tmp_path_factory.mktemp("clip"), TINY_TEXT)


@pytest.fixture(scope="session")
def make_tiny(clip_folder: Path) -> Callable[[int], DiffusersModel]:
    """`make_tiny(seed)`: a new random float32 model of SD1's topology (192 + 72 targets) on the CPU, 0.5 s."""

    def build(seed: int = 0) -> DiffusersModel:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = UNet2DConditionModel(**TINY_UNET)
            vae = AutoencoderKL(**TINY_VAE)
            text = CLIPTextModel(CLIPTextConfig(**TINY_TEXT))
        for part in (unet, vae, text):
            fill_zeros(part, seed)
            part.eval().requires_grad_(False)
        return DiffusersModel("tiny", unet, vae, text, load_tokenizer(clip_folder), f"tiny-{seed}")

    return build


@pytest.fixture(scope="session")
def tiny_model(make_tiny: Callable[[int], DiffusersModel]) -> DiffusersModel:
    """The shared tiny model. Whoever changes a weight must change it back; use `make_tiny` otherwise."""
    model = make_tiny(0)
    gc.collect()
    gc.freeze()  # accelerate collects garbage after every run: over torch's and gradio's modules that takes seconds
    return model


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_model: DiffusersModel, clip_folder: Path) -> Path:
    """The tiny model as a CompVis-keyed float32 .safetensors with its .yaml beside it."""
    from safetensors.torch import save_file

    from lib_lora.files.checkpoint_convert import parts_to_compvis
    from lib_lora.models.diffusers_model import TEXT_PREFIX, text_root

    text = text_root(tiny_model.text_encoder).state_dict()
    parts = {
        "unet": tiny_model.unet.state_dict(),
        "vae": tiny_model.vae.state_dict(),
        "te1": {TEXT_PREFIX + name: tensor for name, tensor in text.items()},
    }
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in parts_to_compvis(parts).items()}, str(path))
    path.with_suffix(".yaml").write_text(
        "model:\n  params:\n    scale_factor: 0.18215\n    linear_start: 0.00085\n    linear_end: 0.012\n"
        "    unet_config:\n      params: {num_heads: 4}\n"
        f"    cond_stage_config:\n      params: {{version: {json.dumps(str(clip_folder))}}}\n",
        encoding="utf-8",
    )
    return path
