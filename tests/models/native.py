"""Tiny random models of SD2 and SDXL in the classes their checkpoints come from (ldm, OpenCLIP, transformers)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lib_lora.models.checkpoint_config import TEXT_CONFIG_KEYS
from tests.models import live

DEEPEST = 3
LAYERS, HEADS, HEAD_CHANNELS, SIZE_WIDTH = 3, 2, 8, 16
WIDTHS = {"te1": 16, "te2": 8}
VAE: dict[str, Any] = {
    "ch": 32,
    "out_ch": 3,
    "ch_mult": (1, 2, 1, 1),
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "in_channels": 3,
    "resolution": 64,
    "z_channels": 4,
}


@dataclass
class Native:
    """The modules by the prefix that their tensors have in a checkpoint file."""

    version: str
    modules: dict[str, Any] = field(default_factory=dict)

    @property
    def unet(self) -> Any:
        return self.modules["model.diffusion_model."]

    @property
    def vae(self) -> Any:
        return self.modules["first_stage_model."]

    @property
    def tower(self) -> Any:
        """The OpenCLIP model: SD2's, or SDXL's second."""
        prefix = "conditioner.embedders.1.model." if self.version == "sdxl" else "cond_stage_model.model."
        return self.modules[prefix]

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint file of it holds."""
        return {
            prefix + name: tensor.clone().contiguous()
            for prefix, module in self.modules.items()
            for name, tensor in module.state_dict().items()
        }

    def save(self, path: Path, state: dict[str, Tensor] | None = None, said: dict[str, str] | None = None) -> Path:
        """A .safetensors whose metadata tells the heads of the text encoders, and a .yaml with those of the UNet."""
        heads = json.dumps({"num_attention_heads": HEADS})
        save_file(
            self.state() if state is None else state,
            str(path),
            dict.fromkeys(TEXT_CONFIG_KEYS.values(), heads) | (said or {}),
        )
        path.with_suffix(".yaml").write_text(
            f"model: {{params: {{unet_config: {{params: {{num_head_channels: {HEAD_CHANNELS}}}}}}}}}", encoding="utf-8"
        )
        return path


@torch.no_grad()
def make(version: str, seed: int = 0) -> Native:
    """A random model; no weight is zero."""
    live.define_missing_ops()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Native(version, {"model.diffusion_model.": live.unet(version), "first_stage_model.": _vae()})
        if version == "sdxl":
            for module in made.unet.modules():
                if hasattr(module, "transformer_blocks"):
                    del module.transformer_blocks[DEEPEST:]  # of 10: smaller files
            width = made.unet.model_channels * 4
            sizes = WIDTHS["te2"] + 6 * SIZE_WIDTH
            made.unet.label_emb = nn.Sequential(
                nn.Sequential(nn.Linear(sizes, width), nn.SiLU(), nn.Linear(width, width))
            )
            made.modules["conditioner.embedders.0.transformer."] = _clip(WIDTHS["te1"])
            made.modules["conditioner.embedders.1.model."] = _open_clip(WIDTHS["te2"])
        else:
            made.modules["cond_stage_model.model."] = _open_clip(WIDTHS["te1"])
        for module in made.modules.values():
            for parameter in module.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.1)
            module.eval().requires_grad_(False)
    return made


def _vae() -> Any:
    from ldm.modules.diffusionmodules import model

    made: Any = nn.Module()
    made.encoder, made.decoder = model.Encoder(**VAE), model.Decoder(**VAE)
    made.quant_conv, made.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)
    return made


def _clip(width: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            projection_dim=width,
            vocab_size=49408,
            bos_token_id=49406,
            eos_token_id=49407,
        )
    )


def _open_clip(width: int) -> Any:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    picture = CLIPVisionCfg(layers=1, width=64, patch_size=16, image_size=32)
    words = CLIPTextCfg(width=width, heads=HEADS, layers=LAYERS, vocab_size=49408)
    made = CLIP(embed_dim=width, vision_cfg=picture, text_cfg=words)
    del made.visual
    return made
