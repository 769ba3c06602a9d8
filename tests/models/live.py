"""Live models of SD1, SD2 and SDXL out of ldm's, OpenCLIP's and transformers' classes, tiny or on the meta device."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from lib_lora.keys.open_clip import openclip_places
from lib_lora.keys.unet import NATIVE

TINY, FULL = "tiny", "full"
# (width of the first level, context, channels of a head)
UNETS = {
    ("sd1", FULL): (320, 768, 40),
    ("sd2", FULL): (320, 1024, 64),
    ("sdxl", FULL): (320, 2048, 64),
    ("sd1", TINY): (32, 16, 8),
    ("sd2", TINY): (32, 16, 8),
    ("sdxl", TINY): (32, 24, 8),
}
SIZES = {FULL: 2816, TINY: 12}  # width of SDXL's size and crop embeddings
# (blocks, width, heads)
TOWERS = {"L": (12, 768, 12), "H": (24, 1024, 16), "bigG": (32, 1280, 20), TINY: (3, 16, 2)}


def define_missing_ops() -> None:
    """There is no CPU build of torchvision in the test environment; its import needs these two names only."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def unet(version: str, size: str = TINY, channels: int = 4) -> Any:
    """ldm's UNetModel. For SDXL its transformers are deepened and the sizes' embedding is added, as sgm has it."""
    define_missing_ops()
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    width, context, head = UNETS[version, size]
    xl = version == "sdxl"
    made = UNetModel(
        image_size=32,
        in_channels=channels,
        out_channels=4,
        model_channels=width,
        attention_resolutions=[4, 2] if xl else [4, 2, 1],
        num_res_blocks=2,
        channel_mult=[1, 2, 4] if xl else [1, 2, 4, 4],
        num_head_channels=head,
        use_spatial_transformer=True,
        use_linear_in_transformer=version != "sd1",
        context_dim=context,
        legacy=False,
    )
    return _deepened(made, SIZES[size], 4 * width) if xl else made


def diffusers_unet(version: str, sizes: int = 0) -> Any:
    """diffusers' UNet of the tiny sizes. `sizes` is the width of each of SDXL's embedded numbers."""
    from diffusers import UNet2DConditionModel

    width, context, head = UNETS[version, TINY]
    if version == "sdxl":
        shape: dict[str, Any] = {
            "block_out_channels": (width, 2 * width, 4 * width),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": sizes,
            "projection_class_embeddings_input_dim": SIZES[TINY],
        }
    else:
        shape = {"block_out_channels": (width, 2 * width, 4 * width, 4 * width)}
    made = UNet2DConditionModel(
        **shape,
        cross_attention_dim=context,
        attention_head_dim=tuple(width // head for width in shape["block_out_channels"]),
        use_linear_projection=version != "sd1",
    )
    return made.eval()


@torch.no_grad()
def share_unet_weights(ours: Any, reference: Any, version: str) -> None:
    """Give ldm's UNet random weights, and diffusers' the same."""
    for path, native in NATIVE[version].items():
        for name, parameter in ours.get_submodule(native).named_parameters(recurse=False):
            target = getattr(reference.get_submodule(path), name)
            nn.init.normal_(parameter, std=0.15)
            target.copy_(parameter.view(target.shape))


def _deepened(made: Any, sizes: int, width: int) -> Any:
    made.num_classes = "sequential"
    made.label_emb = nn.Sequential(nn.Sequential(nn.Linear(sizes, width), nn.SiLU(), nn.Linear(width, width)))
    for module in [m for m in made.modules() if hasattr(m, "transformer_blocks")]:
        wide = module.norm.num_channels == made.model_channels * 4
        blocks = [copy.deepcopy(module.transformer_blocks[0]) for _ in range(10 if wide else 2)]
        for block in blocks:
            for parameter in block.parameters():
                if not parameter.is_meta:
                    nn.init.normal_(parameter, std=0.2)
        module.transformer_blocks = nn.ModuleList(blocks)
    return made


def open_clip_tower(name: str) -> Any:
    """OpenCLIP's CLIP without its picture side, as ldm keeps it."""
    define_missing_ops()
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    layers, width, heads = TOWERS[name]
    picture = CLIPVisionCfg(layers=1, width=64, patch_size=16, image_size=32)
    words = CLIPTextCfg(width=width, heads=heads, layers=layers, vocab_size=64 if name == TINY else 49408)
    made = CLIP(embed_dim=width, vision_cfg=picture, text_cfg=words)
    del made.visual
    return made


def hf_tower(name: str, projection: bool = False) -> Any:
    """transformers' CLIP text model, with OpenCLIP's activation."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    layers, width, heads = TOWERS[name]
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
        vocab_size=64 if name == TINY else 49408,
        hidden_act="gelu",
        bos_token_id=62,
        eos_token_id=63,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def hf_embedder(tower: Any) -> nn.Module:
    """What ldm's and sgm's FrozenCLIPEmbedder look like."""
    made = nn.Module()
    made.transformer = tower
    return made


def open_clip_embedder(tower: Any) -> nn.Module:
    """What ldm's and sgm's FrozenOpenCLIPEmbedder look like."""
    made = nn.Module()
    made.model = tower
    return made


def wrapped(embedder: nn.Module) -> nn.Module:
    """The webui's `FrozenCLIPEmbedderWithCustomWords`, as far as structure goes, with its own token embedding."""
    holder = embedder.transformer.text_model.embeddings if hasattr(embedder, "transformer") else embedder.model
    fixes = nn.Module()
    fixes.wrapped = holder.token_embedding
    del holder.token_embedding
    holder.token_embedding = fixes
    outer = nn.Module()
    outer.wrapped = embedder
    return outer


def ldm_model(made_unet: Any, embedder: Any) -> Any:
    """LatentDiffusion with one text encoder."""
    made = nn.Module()
    made.model = nn.Module()
    made.model.diffusion_model = made_unet
    made.cond_stage_model = embedder
    return made


def sgm_model(made_unet: Any, *embedders: Any) -> Any:
    """DiffusionEngine; the embedders of sizes have no text encoder. The webui adds `cond_stage_model`."""
    conditioner = nn.Module()
    conditioner.embedders = nn.ModuleList([*embedders, nn.Identity(), nn.Identity()])
    made = ldm_model(made_unet, conditioner)
    made.conditioner = conditioner
    return made


def full(version: str) -> Any:
    """A whole model of real size on the meta device."""
    with torch.device("meta"):
        if version == "sd1":
            return ldm_model(unet("sd1", FULL), wrapped(hf_embedder(hf_tower("L"))))
        if version == "sd2":
            return ldm_model(unet("sd2", FULL), wrapped(open_clip_embedder(open_clip_tower("H"))))
        first, second = hf_embedder(hf_tower("L")), open_clip_embedder(open_clip_tower("bigG"))
        return sgm_model(unet("sdxl", FULL), wrapped(first), wrapped(second))


@torch.no_grad()
def copy_tower(hf: Any, tower: Any) -> None:
    """Give OpenCLIP's tower the weights of transformers'."""
    depth, width = len(tower.transformer.resblocks), tower.positional_embedding.shape[1]
    for path, place in openclip_places(depth, width).items():
        source, target = hf.get_submodule(path), tower.get_submodule(place.module)
        rows = slice(*place.rows) if place.rows else slice(None)
        weight = source.weight.t() if place.transposed else source.weight
        getattr(target, place.weight)[rows] = weight
        if place.bias is not None and getattr(source, "bias", None) is not None:
            getattr(target, place.bias)[rows] = source.bias
