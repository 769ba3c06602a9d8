"""LdmModel over the real ldm classes, against the diffusers modules with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lib_lora.errors import WrongBaseModel
from lib_lora.keys.checkpoint import default_targets
from lib_lora.keys.layer_key import TE1, UNET, LayerKey
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.models.ldm_model import LdmModel
from lib_lora.models.ldm_session import replace_inference_tensors
from lib_lora.ports import Conditioning, DiffusionModel
from tests.models import live


def _widths(config: Any) -> dict[str, Any]:
    first = config.block_out_channels[0]
    return {"first": first, "multipliers": [width // first for width in config.block_out_channels]}


def _config(clip_folder: Path, like: DiffusersModel) -> dict[str, Any]:
    """LatentDiffusion's parameters for a model of the same sizes as `like`."""
    of_unet, of_vae = _widths(like.unet.config), _widths(like.vae.config)
    unet: dict[str, Any] = {"image_size": 16, "in_channels": 4, "out_channels": 4, "num_res_blocks": 2}
    unet |= {"model_channels": of_unet["first"], "channel_mult": of_unet["multipliers"]}
    unet |= {"attention_resolutions": [4, 2, 1], "num_heads": 4, "context_dim": like.unet.config.cross_attention_dim}
    unet |= {"use_spatial_transformer": True, "transformer_depth": 1, "use_checkpoint": True, "legacy": False}
    vae: dict[str, Any] = {"double_z": True, "z_channels": 4, "resolution": 128, "in_channels": 3, "out_ch": 3}
    vae |= {"ch": of_vae["first"], "ch_mult": of_vae["multipliers"]}
    vae |= {"num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    loss = {"target": "torch.nn.Identity"}
    clip = {"version": str(clip_folder), "device": "cpu"}
    return {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "timesteps": 1000,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "conditioning_key": "crossattn",
        "scale_factor": 0.18215,
        "use_ema": False,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {"embed_dim": 4, "ddconfig": vae, "lossconfig": loss},
        },
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "params": clip},
    }


@pytest.fixture(scope="module")
def make_ldm(tiny_checkpoint: Path, clip_folder: Path, tiny_model: DiffusersModel) -> Callable[[], Any]:
    """Builds a real LatentDiffusion with the tiny checkpoint's weights, about 1 s."""
    live.define_missing_ops()
    LatentDiffusion = pytest.importorskip("ldm.models.diffusion.ddpm").LatentDiffusion
    from transformers import CLIPTextConfig, CLIPTextModel

    def build() -> Any:
        # As the webui does it: the class is built from its configuration, the weights come from the checkpoint.
        CLIPTextModel.from_pretrained = lambda version, **_: CLIPTextModel(CLIPTextConfig.from_pretrained(version))
        try:
            model = LatentDiffusion(**_config(clip_folder, tiny_model))
        finally:
            del CLIPTextModel.from_pretrained  # the inherited one is visible again
        missing, unexpected = model.load_state_dict(load_file(tiny_checkpoint), strict=False)
        assert not unexpected and all("position_ids" in n or "alphas" in n or "." not in n for n in missing)
        return model.eval()

    return build


@pytest.fixture(scope="module")
def ldm(make_ldm: Callable[[], Any]) -> Any:
    return make_ldm()


def _close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert reference.abs().max() > 1e-2, "the reference is empty, the comparison would mean nothing"
    assert (ours - reference).abs().max() / reference.abs().max() < tolerance


def test_is_the_port(ldm: Any) -> None:
    assert isinstance(LdmModel(ldm), DiffusionModel)


def test_every_layer_has_its_canonical_name(ldm: Any, tiny_model: DiffusersModel) -> None:
    ours, reference = LdmModel(ldm).modules_by_key(), tiny_model.modules_by_key()
    assert set(ours) == set(reference)
    for key, module in reference.items():
        assert torch.equal(ours[key].weight.flatten(), module.weight.flatten()), key
    assert {LayerKey(UNET, path) for path in default_targets(UNET)} <= set(ours)
    assert len(default_targets(UNET)) == 192 and len(default_targets(TE1)) == 72


def test_no_linear_or_conv_of_the_unet_is_left_out(ldm: Any) -> None:
    known = {id(module) for module in LdmModel(ldm).modules_by_key().values()}
    layers = [m for m in ldm.model.diffusion_model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.GroupNorm)]
    assert len(layers) > 250 and all(id(module) in known for module in layers)


def test_prediction_equals_diffusers(ldm: Any, tiny_model: DiffusersModel) -> None:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 4, 16, 16, generator=generator)
    timesteps = torch.tensor([17, 801])
    prompts = ["a red square", "a photo of a dog (1) [x]"]
    with torch.no_grad():
        text = LdmModel(ldm).encode_text(prompts).states
        _close(text, tiny_model.encode_text(prompts).states)
        _close(
            LdmModel(ldm).predict(noisy, timesteps, Conditioning(text)),
            tiny_model.predict(noisy, timesteps, Conditioning(text)),
        )


def test_long_prompts_are_cut_alike(ldm: Any, tiny_model: DiffusersModel) -> None:
    prompt = ["one two three four five " * 30]
    _close(LdmModel(ldm).encode_text(prompt).states.detach(), tiny_model.encode_text(prompt).states)


def test_clip_skip_equals_diffusers(ldm: Any, tiny_model: DiffusersModel) -> None:
    tiny_model.clip_skip = 2
    try:
        _close(
            LdmModel(ldm, clip_skip=2).encode_text(["a cat"]).states.detach(), tiny_model.encode_text(["a cat"]).states
        )
    finally:
        tiny_model.clip_skip = 1
    assert not torch.allclose(
        LdmModel(ldm, clip_skip=2).encode_text(["a cat"]).states, tiny_model.encode_text(["a cat"]).states
    )


def test_vae_both_ways_equals_diffusers(ldm: Any, tiny_model: DiffusersModel) -> None:
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    latents = LdmModel(ldm).encode_image(pixels)
    assert latents.shape == (1, 8, 8, 8)
    _close(latents, tiny_model.encode_image(pixels))
    _close(LdmModel(ldm).decode_latents(latents[:, :4]), tiny_model.decode_latents(latents[:, :4]))


def test_schedule_equals_diffusers(ldm: Any, tiny_model: DiffusersModel) -> None:
    ours = LdmModel(ldm).alphas_cumprod()
    assert ours.shape == (1000,)
    assert torch.allclose(ours.double(), tiny_model.alphas_cumprod().double(), atol=1e-6, rtol=1e-5)


def test_the_webuis_untouched_schedule_is_preferred(ldm: Any) -> None:
    ldm.alphas_cumprod_original = torch.full((1000,), 0.5)
    try:
        assert LdmModel(ldm).alphas_cumprod()[3] == 0.5
    finally:
        del ldm.alphas_cumprod_original


@pytest.mark.parametrize("kind, expected", [("eps", "epsilon"), ("v", "v_prediction")])
def test_prediction_type(ldm: Any, kind: str, expected: str) -> None:
    ldm.parameterization = kind
    try:
        assert LdmModel(ldm).prediction_type == expected
    finally:
        ldm.parameterization = "eps"


def test_identity_changes_with_a_load_into_the_same_modules(ldm: Any) -> None:
    assert LdmModel(ldm).base_identity() == LdmModel(ldm).base_identity()
    assert LdmModel(ldm).base_identity() != LdmModel(ldm, generation=1).base_identity()


def test_the_webuis_wrapper_round_the_text_encoder_is_seen_through(ldm: Any) -> None:
    embeddings = ldm.cond_stage_model.transformer.text_model.embeddings
    plain = embeddings.token_embedding

    class EmbeddingsWithFixes(nn.Module):
        def __init__(self, wrapped: nn.Module) -> None:
            super().__init__()
            self.wrapped = wrapped

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.wrapped(input_ids)

    expected = LdmModel(ldm).encode_text(["a dog"]).states
    outer = nn.Module()
    outer.wrapped = ldm.cond_stage_model
    hijacked = SimpleNamespace(
        model=ldm.model, cond_stage_model=outer, first_stage_model=ldm.first_stage_model, scale_factor=1.0
    )
    embeddings.token_embedding = EmbeddingsWithFixes(plain)
    try:
        model = LdmModel(hijacked)
        assert torch.equal(model.encode_text(["a dog"]).states, expected)
        assert LayerKey(TE1, "text_model.encoder.layers.0.self_attn.q_proj") in model.modules_by_key()
    finally:
        embeddings.token_embedding = plain


@pytest.mark.parametrize(
    "change, words",
    [({"conditioner": object()}, "SDXL"), ({"cond_stage_model": nn.Linear(1, 1)}, "Linear"), ({"model": None}, "UNet")],
)
def test_other_models_are_refused_with_the_reason(ldm: Any, change: dict[str, Any], words: str) -> None:
    parts = {"model": ldm.model, "cond_stage_model": ldm.cond_stage_model, "first_stage_model": None, **change}
    with pytest.raises(WrongBaseModel, match=words):
        LdmModel(SimpleNamespace(**parts))


def _adapter_gradient(ldm: Any, checkpointing: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and the gradient of an adapter hooked onto a layer deep inside a checkpointed block."""
    model = LdmModel(ldm)
    target = model.modules_by_key()[LayerKey(UNET, "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k")]
    adapter = nn.Linear(32, 64, bias=False)
    nn.init.constant_(adapter.weight, 0.01)
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    with model.training_session(gradient_checkpointing=checkpointing):
        handle = target.register_forward_hook(lambda _module, args, out: out + adapter(args[0]))
        try:
            out = model.predict(noisy, torch.tensor([100]), model.encode_text(["a dog"]))
            out.square().mean().backward()
        finally:
            handle.remove()
    assert adapter.weight.grad is not None
    return out.detach(), adapter.weight.grad


def test_gradients_reach_a_hooked_adapter_with_and_without_checkpointing(ldm: Any) -> None:
    plain, checkpointed = _adapter_gradient(ldm, False), _adapter_gradient(ldm, True)
    assert plain[1].abs().max() > 1e-7
    assert torch.equal(plain[0], checkpointed[0])
    assert torch.allclose(plain[1], checkpointed[1], rtol=1e-5, atol=1e-10)
    assert all(parameter.grad is None for parameter in ldm.parameters())


def test_ldms_own_checkpoint_would_lose_the_gradient(ldm: Any) -> None:
    """The reason for the session: if this fails one day, switching the flags off is not needed any more."""
    model = LdmModel(ldm)
    target = model.modules_by_key()[LayerKey(UNET, "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k")]
    adapter = nn.Linear(32, 64, bias=False)
    handle = target.register_forward_hook(lambda _module, args, out: out + adapter(args[0]))
    try:
        with torch.no_grad():
            text = model.encode_text(["a dog"]).states
        # The flag is what matters: the block's output is computed under no_grad inside ldm's checkpoint.
        block = ldm.model.diffusion_model.input_blocks[4][1].transformer_blocks[0]
        assert block.checkpoint is True
        for parameter in ldm.parameters():
            parameter.requires_grad_(False)
        out = model.predict(torch.zeros(1, 4, 16, 16), torch.tensor([5]), Conditioning(text))
        assert not out.requires_grad
    finally:
        handle.remove()
        for parameter in ldm.parameters():
            parameter.requires_grad_(True)


def _state(ldm: Any) -> tuple[Any, ...]:
    flags = [(m.training, m.__dict__.get("checkpoint"), m.__dict__.get("use_checkpoint")) for m in ldm.modules()]
    return flags, [p.requires_grad for p in ldm.parameters()], ["forward" in m.__dict__ for m in ldm.modules()]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_session_restores_every_flag_even_after_an_error(ldm: Any, checkpointing: bool) -> None:
    ldm.model.diffusion_model.input_blocks[1][0].train()
    next(ldm.first_stage_model.parameters()).requires_grad_(False)
    before = _state(ldm)
    with pytest.raises(RuntimeError, match="boom"), LdmModel(ldm).training_session(checkpointing):
        assert not any(p.requires_grad for p in ldm.parameters()) and not any(m.training for m in ldm.modules())
        assert _state(ldm) != before
        raise RuntimeError("boom")
    assert _state(ldm) == before
    ldm.eval()


def test_inference_tensors_become_trainable_ground_with_the_same_bits(make_ldm: Callable[[], Any], ldm: Any) -> None:
    with torch.inference_mode():
        model = make_ldm()
    assert next(model.parameters()).is_inference()
    _, gradient = _adapter_gradient(model, False)
    assert torch.equal(gradient, _adapter_gradient(ldm, False)[1])
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), ldm.parameters(), strict=True))
    assert replace_inference_tensors(model) == 0
