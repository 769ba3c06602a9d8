"""Names of whole checkpoints: CompVis', sgm's and diffusers', with OpenCLIP's fused and transposed parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lib_lora.keys import unet
from lib_lora.keys.checkpoint import Piece, checkpoint_key, checkpoint_layer_map, checkpoint_pieces
from lib_lora.keys.layer_key import LayerKey

BLOCK = "text_model.encoder.layers"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.diffusion_model.out.2.bias", (LayerKey("unet", "conv_out"), "bias")),
        (
            "first_stage_model.decoder.up.3.block.0.conv1.weight",
            (LayerKey("vae", "decoder.up_blocks.0.resnets.0.conv1"), "weight"),
        ),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.weight",
            (LayerKey("te1", "text_model.final_layer_norm"), "weight"),
        ),
        (
            "cond_stage_model.transformer.final_layer_norm.weight",
            (LayerKey("te1", "text_model.final_layer_norm"), "weight"),
        ),
        ("unet.conv_in.weight", (LayerKey("unet", "conv_in"), "weight")),
        ("alphas_cumprod", None),
        ("model_ema.decay", None),
        ("cond_stage_model.transformer.text_model.embeddings.position_ids", None),
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", None),
    ],
)
def test_checkpoint_key(name: str, expected: tuple[LayerKey, str] | None) -> None:
    assert checkpoint_key(name) == expected


def test_checkpoint_layer_map_has_weights_only() -> None:
    names = ["model.diffusion_model.out.2.weight", "model.diffusion_model.out.2.bias", "betas"]
    assert checkpoint_layer_map(names) == {names[0]: LayerKey("unet", "conv_out")}


def thirds(part: str, block: int, width: int, parameter: str) -> tuple[Piece, ...]:
    paths = [LayerKey(part, f"{BLOCK}.{block}.self_attn.{name}_proj") for name in "qkv"]
    return tuple(Piece(key, parameter, (i * width, (i + 1) * width)) for i, key in enumerate(paths))


SD2, SDXL = "cond_stage_model.model.", "conditioner.embedders.1.model."


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        (f"{SD2}transformer.resblocks.22.attn.in_proj_weight", (3072, 1024), thirds("te1", 22, 1024, "weight")),
        (f"{SDXL}transformer.resblocks.0.attn.in_proj_bias", (3840,), thirds("te2", 0, 1280, "bias")),
        (
            f"{SDXL}transformer.resblocks.31.attn.out_proj.bias",
            (1280,),
            (Piece(LayerKey("te2", f"{BLOCK}.31.self_attn.out_proj"), "bias"),),
        ),
        (f"{SDXL}text_projection", (1280, 1280), (Piece(LayerKey("te2", "text_projection"), "weight", None, True),)),
        (
            f"{SD2}positional_embedding",
            (77, 1024),
            (Piece(LayerKey("te1", "text_model.embeddings.position_embedding"), "weight"),),
        ),
        (f"{SD2}ln_final.bias", (1024,), (Piece(LayerKey("te1", "text_model.final_layer_norm"), "bias"),)),
        (f"{SD2}logit_scale", (), ()),
        (f"{SD2}transformer.resblocks.x.attn.in_proj_weight", (), ()),
        (
            "conditioner.embedders.0.transformer.text_model.encoder.layers.3.mlp.fc1.weight",
            (3072, 768),
            (Piece(LayerKey("te1", f"{BLOCK}.3.mlp.fc1"), "weight"),),
        ),
        (
            "model.diffusion_model.label_emb.0.2.bias",
            (1280,),
            (Piece(LayerKey("unet", "add_embedding.linear_2"), "bias"),),
        ),
        ("text_encoder_2.text_projection.weight", (1280, 1280), (Piece(LayerKey("te2", "text_projection"), "weight"),)),
        (
            "unet.add_embedding.linear_1.weight",
            (1280, 2816),
            (Piece(LayerKey("unet", "add_embedding.linear_1"), "weight"),),
        ),
        ("first_stage_model.quant_conv.weight", (8, 8, 1, 1), ()),
        ("model_ema.decay", (), ()),
        ("", (), ()),
    ],
)
def test_checkpoint_pieces(name: str, shape: tuple[int, ...], expected: tuple[Piece, ...]) -> None:
    assert checkpoint_pieces(name, shape) == expected


@pytest.mark.parametrize("version", ["sd1", "sd2", "sdxl"])
def test_every_module_of_the_unet_is_one_piece(version: str, base_model: Callable) -> None:
    shapes = base_model(version, "unet").shapes
    for path, shape in shapes.items():
        for name in (f"model.diffusion_model.{unet.NATIVE[version][path]}", f"unet.{path}"):
            assert checkpoint_pieces(f"{name}.weight", shape) == (Piece(LayerKey("unet", path), "weight"),)
