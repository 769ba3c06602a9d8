"""The key tables, both ways, against the modules of diffusers, transformers and ldm."""

from __future__ import annotations

from typing import Any

import pytest

from lib_lora.keys import text_encoder, unet, vae
from lib_lora.keys.checkpoint import (
    checkpoint_key,
    checkpoint_layer_map,
    default_targets,
    diffusers_to_ldm,
    ldm_to_diffusers,
)
from lib_lora.keys.layer_key import LayerKey
from lib_lora.miniature.nets import new_text_encoder, new_unet, new_vae
from lib_lora.models.diffusers_model import TEXT_PREFIX, text_root

torch = pytest.importorskip("torch")


def weighted_modules(model: Any) -> list[str]:
    """Modules that own a parameter, in module order."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters()))


@pytest.fixture(scope="module")
def ldm_unet() -> Any:
    openaimodel = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel")
    with torch.device("meta"):
        return openaimodel.UNetModel(
            image_size=32,
            in_channels=4,
            out_channels=4,
            model_channels=320,
            attention_resolutions=[4, 2, 1],
            num_res_blocks=2,
            channel_mult=[1, 2, 4, 4],
            num_heads=8,
            use_spatial_transformer=True,
            transformer_depth=1,
            context_dim=768,
            use_checkpoint=False,
            legacy=False,
        )


def test_unet_table_is_exactly_diffusers_modules_in_their_order() -> None:
    assert unet.unet_paths() == tuple(weighted_modules(new_unet()))


def test_unet_table_is_exactly_ldms_modules(ldm_unet: Any) -> None:
    assert set(unet.LDM_TO_DIFFUSERS) == set(weighted_modules(ldm_unet))


def test_unet_shapes_agree_between_ldm_and_diffusers(ldm_unet: Any) -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        ours = UNet2DConditionModel(cross_attention_dim=768)
    shapes = {name: tuple(p.shape) for name, p in ours.named_parameters()}
    for name, parameter in ldm_unet.named_parameters():
        module, _, kind = name.rpartition(".")
        assert shapes.pop(f"{ldm_to_diffusers('unet', module)}.{kind}") == tuple(parameter.shape)
    assert not shapes


def test_vae_table_is_exactly_both_sides_modules() -> None:
    model = pytest.importorskip("ldm.modules.diffusionmodules.model")
    options = {"ch": 64, "out_ch": 3, "ch_mult": (1, 2, 4, 4), "num_res_blocks": 2, "attn_resolutions": []}
    options |= {"in_channels": 3, "resolution": 64, "z_channels": 4}
    names = {f"encoder.{n}" for n in weighted_modules(model.Encoder(**options))}
    names |= {f"decoder.{n}" for n in weighted_modules(model.Decoder(**options))}
    assert set(vae.LDM_TO_DIFFUSERS) == names | {"quant_conv", "post_quant_conv"}
    assert set(vae.vae_paths()) == set(weighted_modules(new_vae()))


def test_text_encoder_paths_are_exactly_transformers_modules_in_their_order() -> None:
    modules = weighted_modules(text_root(new_text_encoder()))  # transformers 5 has no `text_model` around them
    assert text_encoder.text_encoder_paths() == tuple(TEXT_PREFIX + path for path in modules)


def test_counts_of_kohyas_defaults() -> None:
    assert len(default_targets("unet")) == 192
    assert len(default_targets("te1")) == 72
    assert len(text_encoder.attention_targets()) == 48


def test_targets_are_what_kohya_finds_by_class() -> None:
    """kohya walks named classes; the table must find the same without a model."""
    model = new_unet()

    def inside(classes: set[str]) -> set[str]:
        found = set()
        for name, module in model.named_modules():
            if type(module).__name__ in classes:
                for child, leaf in module.named_modules():
                    if type(leaf).__name__ in ("Linear", "Conv2d", "LoRACompatibleLinear", "LoRACompatibleConv"):
                        found.add(f"{name}.{child}")
        return found

    assert set(default_targets("unet")) == inside({"Transformer2DModel"})
    assert set(unet.conv_targets()) == inside({"ResnetBlock2D", "Downsample2D", "Upsample2D"})


@pytest.mark.parametrize("part", ["unet", "vae", "te1"])
def test_tables_invert(part: str) -> None:
    paths = {"unet": unet.unet_paths(), "vae": vae.vae_paths(), "te1": text_encoder.text_encoder_paths()}[part]
    for path in paths:
        ldm = diffusers_to_ldm(part, path)
        assert ldm is not None
        assert ldm_to_diffusers(part, ldm) == path
    assert ldm_to_diffusers(part, "no.such.layer") is None
    assert diffusers_to_ldm(part, "no.such.layer") is None


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
    ],
)
def test_checkpoint_key(name: str, expected: tuple[LayerKey, str] | None) -> None:
    assert checkpoint_key(name) == expected


def test_checkpoint_layer_map_has_weights_only() -> None:
    names = ["model.diffusion_model.out.2.weight", "model.diffusion_model.out.2.bias", "betas"]
    assert checkpoint_layer_map(names) == {names[0]: LayerKey("unet", "conv_out")}
