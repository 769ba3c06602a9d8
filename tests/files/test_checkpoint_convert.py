"""Converted checkpoints: bit-equal round trip, and the same outputs from ldm's and diffusers' modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora.errors import BadFile
from lib_lora.files.checkpoint_convert import compvis_to_parts, parts_to_compvis
from lib_lora.miniature.nets import new_text_encoder, new_unet, new_vae
from lib_lora.models.diffusers_model import TEXT_PREFIX, text_root

LDM_VAE: dict[str, Any] = {
    "ch": 64,
    "out_ch": 3,
    "ch_mult": (1, 2, 1, 1),
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "in_channels": 3,
    "resolution": 64,
    "z_channels": 4,
}


@pytest.fixture(scope="module")
def parts() -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(0)
    text = text_root(new_text_encoder()).state_dict()
    te1 = {TEXT_PREFIX + name: tensor for name, tensor in text.items()}
    return {"unet": dict(new_unet().state_dict()), "vae": dict(new_vae().state_dict()), "te1": te1}


@pytest.fixture(scope="module")
def compvis(parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return parts_to_compvis(parts)


def strip(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def test_round_trip_is_bit_equal(parts: dict[str, dict[str, Tensor]], compvis: dict[str, Tensor]) -> None:
    back = compvis_to_parts({**compvis, "alphas_cumprod": torch.ones(1000), "model_ema.decay": torch.ones(())})
    for part, state in parts.items():
        state = {name: t for name, t in state.items() if not name.endswith("position_ids")}
        assert back[part].keys() == state.keys()
        assert all(torch.equal(back[part][name], tensor) for name, tensor in state.items())
    again = parts_to_compvis(back)
    assert all(torch.equal(compvis[name], tensor) for name, tensor in again.items())


def test_unets_give_equal_output(parts: dict[str, dict[str, Tensor]], compvis: dict[str, Tensor]) -> None:
    openaimodel = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel")
    ldm = openaimodel.UNetModel(
        image_size=16,
        in_channels=4,
        out_channels=4,
        model_channels=64,
        attention_resolutions=[4, 2, 1],
        num_res_blocks=2,
        channel_mult=[1, 2, 1, 1],
        num_heads=4,
        use_spatial_transformer=True,
        transformer_depth=1,
        context_dim=64,
        use_checkpoint=False,
        legacy=False,
    )
    ldm.load_state_dict(strip(compvis, "model.diffusion_model."), strict=True)
    ours = new_unet()
    ours.load_state_dict(parts["unet"], strict=True)
    torch.manual_seed(1)
    x, text, t = torch.randn(2, 4, 16, 16), torch.randn(2, 77, 64), torch.tensor([3, 801])
    with torch.no_grad():
        expected = ldm.eval()(x, t, context=text)
        actual = ours.eval()(x, t, text).sample
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)


def test_vaes_give_equal_output(parts: dict[str, dict[str, Tensor]], compvis: dict[str, Tensor]) -> None:
    model = pytest.importorskip("ldm.modules.diffusionmodules.model")
    ldm: Any = nn.Module()
    ldm.encoder, ldm.decoder = model.Encoder(**LDM_VAE), model.Decoder(**LDM_VAE)
    ldm.quant_conv, ldm.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)
    ldm.load_state_dict(strip(compvis, "first_stage_model."), strict=True)
    ours = new_vae()
    ours.load_state_dict(parts["vae"], strict=True)
    ldm, ours = ldm.double().eval(), ours.double().eval()
    torch.manual_seed(1)
    z, pixels = torch.randn(1, 4, 8, 8).double(), torch.rand(1, 3, 64, 64).double()
    with torch.no_grad():
        expected = ldm.decoder(ldm.post_quant_conv(z))
        torch.testing.assert_close(ours.decode(z).sample, expected, atol=1e-9, rtol=1e-9)
        moments = ldm.quant_conv(ldm.encoder(pixels))
        torch.testing.assert_close(ours.encode(pixels).latent_dist.parameters, moments, atol=1e-9, rtol=1e-9)
    assert expected.std() > 1e-3


def test_an_incomplete_checkpoint_is_refused_with_what_is_missing(compvis: dict[str, Tensor]) -> None:
    with pytest.raises(BadFile, match="no weights of vae, te1"):
        compvis_to_parts({name: t for name, t in compvis.items() if name.startswith("model.")})


def test_a_foreign_tensor_is_named() -> None:
    with pytest.raises(BadFile, match=r"add_embedding\.linear_1\.weight"):
        parts_to_compvis({"unet": {"add_embedding.linear_1.weight": torch.zeros(1)}})


def test_misshapen_convolutions_are_left_for_the_model_to_refuse(compvis: dict[str, Tensor]) -> None:
    name = "first_stage_model.decoder.mid.attn_1.q.weight"
    for shape in ((64, 64, 0, 1), (64, 64, 3, 3), (64,)):
        parts = compvis_to_parts({**compvis, name: torch.zeros(shape)})
        converted = next(t for n, t in parts["vae"].items() if n.endswith("decoder.mid_block.attentions.0.to_q.weight"))
        assert converted.shape == shape
        back = parts_to_compvis({"vae": {"decoder.mid_block.attentions.0.to_q.weight": torch.zeros(shape)}})
        assert back[name].shape == shape
