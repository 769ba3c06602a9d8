"""Which hidden states SD2 and SDXL are given: against ldm's and OpenCLIP's own classes and diffusers' pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lib_lora.errors import BadConfig
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.models.tokenizer import default_clip_folder, load_tokenizer
from lib_lora.ports import Conditioning, TextOptions
from tests.models import live
from tests.models.native import LAYERS, Native

PROMPTS = ["a photo of a cat, sitting", "", "dog " * 100]


def close(got: Tensor, want: Tensor, size: float = 1e-5) -> None:
    assert got.shape == want.shape and float(want.std()) > 1e-3
    torch.testing.assert_close(got, want, rtol=0, atol=size * float(want.abs().max()))


def open_clip_ids(prompts: list[str]) -> Tensor:
    import open_clip

    ids: Tensor = open_clip.tokenize(prompts)  # pads with 0
    return ids


def outputs_of_blocks(tower: Any, ids: Tensor) -> tuple[list[Tensor], Tensor]:
    """What leaves each block of an OpenCLIP tower, and what its own encode_text gives."""
    seen: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda m, i, out: seen.append(out)) for b in tower.transformer.resblocks]
    pooled = tower.encode_text(ids)
    for hook in hooks:
        hook.remove()
    return [states.transpose(0, 1) for states in seen], pooled


def test_sd2_is_given_what_ldms_embedder_gives(sd2: Native, sd2_model: DiffusersModel) -> None:
    from ldm.modules.encoders.modules import FrozenOpenCLIPEmbedder

    embedder: Any = live.open_clip_embedder(sd2.tower)
    embedder.layer_idx = 1  # "penultimate"
    embedder.text_transformer_forward = lambda *a, **k: FrozenOpenCLIPEmbedder.text_transformer_forward(
        embedder, *a, **k
    )
    want = FrozenOpenCLIPEmbedder.encode_with_transformer(embedder, open_clip_ids(PROMPTS))
    for skip in (0, 2):
        got = sd2_model.encode_text(PROMPTS, TextOptions(clip_skip=skip))
        close(got.states, want)
        assert got.pooled is None
    blocks, _ = outputs_of_blocks(sd2.tower, open_clip_ids(PROMPTS))
    close(sd2_model.encode_text(PROMPTS, TextOptions(clip_skip=3)).states, sd2.tower.ln_final(blocks[-3]))
    with pytest.raises(BadConfig, match="clip_skip 1 asks SD2's"):
        sd2_model.encode_text(PROMPTS, TextOptions(clip_skip=1))
    with pytest.raises(BadConfig, match="more than"):
        sd2_model.encode_text(PROMPTS, TextOptions(clip_skip=LAYERS + 1))


def test_sdxl_is_given_what_both_towers_give(sdxl: Native, sdxl_model: DiffusersModel) -> None:
    blocks, pooled = outputs_of_blocks(sdxl.tower, open_clip_ids(PROMPTS))
    tokenizer = load_tokenizer(default_clip_folder())
    ids = tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    first = sdxl.modules["conditioner.embedders.0.transformer."](ids, output_hidden_states=True).hidden_states
    for skip in (0, 1, 2, 3):
        got = sdxl_model.encode_text(PROMPTS, TextOptions(clip_skip=skip))
        deep = skip or 2
        close(got.states, torch.cat([first[-deep], blocks[-deep]], dim=-1))
        assert got.pooled is not None and got.time_ids is None
        close(got.pooled, pooled)


def pipeline(model: DiffusersModel) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    model.tokenizer_2.pad_token = "!"  # as SDXL's own folder has it
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipe = StableDiffusionXLPipeline(
        model.vae,
        model.text_encoder,
        model.text_encoder_2,
        model.tokenizer,
        model.tokenizer_2,
        model.unet,
        scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_sdxl_is_given_what_diffusers_pipeline_gives(sdxl_model: DiffusersModel) -> None:
    pipe = pipeline(sdxl_model)
    states, _, pooled, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    got = sdxl_model.encode_text(PROMPTS)
    assert got.pooled is not None
    close(got.states, states)
    close(got.pooled, pooled)
    states, _, pooled, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False, clip_skip=1)
    close(sdxl_model.encode_text(PROMPTS, TextOptions(clip_skip=3)).states, states)


def test_sdxl_pools_the_first_window(sdxl_model: DiffusersModel) -> None:
    two = sdxl_model.encode_text(PROMPTS, TextOptions(windows=2))
    one = sdxl_model.encode_text(PROMPTS)
    assert one.pooled is not None and two.pooled is not None
    assert two.states.shape == (3, 154, 24)
    close(two.pooled, one.pooled)
    close(two.states[:, :77], one.states)
    assert not torch.allclose(two.states[2, 77:], two.states[1, 77:], atol=1e-3)  # 25 dogs


def test_sdxls_words_have_vectors_in_both_encoders(sdxl_model: DiffusersModel) -> None:
    vectors = sdxl_model.token_vectors("red cat")
    assert {part: tuple(v.shape) for part, v in vectors.items()} == {"te1": (2, 16), "te2": (2, 8)}
    want = sdxl_model.encode_text(["a red cat, x", "red cat"])
    given = {part: v.clone().requires_grad_() for part, v in vectors.items()}
    with sdxl_model.extra_tokens({"<x>": given}):
        got = sdxl_model.encode_text(["a <x>, x", "<x>"])
    assert got.pooled is not None and want.pooled is not None
    close(got.states.detach(), want.states)
    close(got.pooled.detach(), want.pooled)
    got.pooled.sum().backward()
    assert given["te1"].grad is None and given["te2"].grad is not None and given["te2"].grad.any()
    with pytest.raises(BadConfig, match="no vectors for te2"):
        with sdxl_model.extra_tokens({"<x>": {"te1": vectors["te1"]}}):
            pass
    with pytest.raises(BadConfig, match=r"\[1, 2\] vectors"):
        with sdxl_model.extra_tokens({"<x>": {"te1": vectors["te1"][:1], "te2": vectors["te2"]}}):
            pass


def test_sdxl_without_pooled_states_is_refused(sdxl_model: DiffusersModel) -> None:
    with pytest.raises(BadConfig, match="needs pooled"):
        sdxl_model.predict(torch.zeros(1, 4, 8, 8), torch.tensor([1]), Conditioning(torch.zeros(1, 77, 24)))


def test_pictures_are_drawn_as_diffusers_pipeline_draws_them(sdxl_model: DiffusersModel) -> None:
    """Two prompts of one size, wider than high, guided; without a negative prompt, and with one."""
    from lib_lora.models.sample import SampleRequest, sample_latents, seeded_noise

    pipe, noise = pipeline(sdxl_model), seeded_noise(7, 2, (4, 8, 16))
    for negative in ("", "blurry, (bad)"):
        request = SampleRequest(PROMPTS[:2], negative, 7, 3, 4.0, 128, 64, batch=2, sampler="DDIM")
        got = sample_latents(sdxl_model, request, lambda i: None)
        want = pipe(
            prompt=PROMPTS[:2],
            negative_prompt=[negative] * 2 if negative else None,
            latents=noise.clone(),
            width=128,
            height=64,
            num_inference_steps=3,
            guidance_scale=4.0,
            output_type="latent",
        ).images
        close(got, want, 1e-4)
