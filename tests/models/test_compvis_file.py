"""SD2 and SDXL in one file: written by ldm's, OpenCLIP's and transformers' own classes, read into diffusers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lib_lora.errors import BadFile
from lib_lora.files.checkpoint_convert import compvis_to_parts, parts_to_compvis
from lib_lora.keys.checkpoint import default_targets
from lib_lora.keys.layer_key import LayerKey
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.checkpoint_config import ModelConfig
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.models.fill import module_of
from lib_lora.models.part_config import text_config, unet_config
from lib_lora.ports import Conditioning
from tests.models import live
from tests.models.native import DEEPEST, LAYERS, Native, make

UNET_PREFIX = "model.diffusion_model."


def close(got: Tensor, want: Tensor, size: float = 2e-5) -> None:
    assert got.shape == want.shape and float(want.std()) > 1e-3
    torch.testing.assert_close(got, want, rtol=0, atol=size * float(want.abs().max()))


def theirs(native: Native, config: Any) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    return convert_ldm_unet_checkpoint(native.state(), dict(config))


def test_every_tensor_is_where_diffusers_conversion_puts_it(
    sd2: Native, sd2_model: DiffusersModel, sdxl: Native, sdxl_model: DiffusersModel
) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint, convert_open_clip_checkpoint

    for native, model in ((sd2, sd2_model), (sdxl, sdxl_model)):
        assert model.version == native.version
        assert model.source is not None and model.source.stem == model.name == native.version
        state = native.state()
        tower, prefix = (
            (model.text_encoder, "cond_stage_model.model.")
            if native.version == "sd2"
            else (model.text_encoder_2, "conditioner.embedders.1.model.")
        )
        pairs = [
            (model.unet, theirs(native, model.unet.config)),
            (model.vae, convert_ldm_vae_checkpoint(state, dict(model.vae.config))),
            (tower, convert_open_clip_checkpoint(tower, state, prefix)),
        ]
        for module, want in pairs:
            got = module.state_dict()
            assert not any(p.requires_grad for p in module.parameters()) and not module.training
            assert got.keys() - want.keys() <= {"text_model.embeddings.position_ids"}
            left_out = want.keys() - got.keys()
            assert all(f".layers.{LAYERS - 1}." in name or name == "text_projection.weight" for name in left_out)
            assert (left_out != set()) == (module is sd2_model.text_encoder)
            assert all(torch.equal(got[name], tensor) for name, tensor in want.items() if name in got)
    clip = sdxl.modules["conditioner.embedders.0.transformer."].state_dict()
    assert all(torch.equal(tensor, clip[name]) for name, tensor in sdxl_model.text_encoder.state_dict().items())


@pytest.mark.parametrize("version", ["sd2", "sdxl"])
def test_the_unets_say_the_same(version: str, request: pytest.FixtureRequest) -> None:
    native, model = request.getfixturevalue(version), request.getfixturevalue(f"{version}_model")
    from ldm.modules.diffusionmodules.util import timestep_embedding

    torch.manual_seed(0)
    noisy, times, states = torch.randn(2, 4, 8, 16), torch.tensor([999, 3]), torch.randn(2, 77, 16)
    if version == "sd2":
        close(model.predict(noisy, times, Conditioning(states)), native.unet(noisy, times, context=states))
        return
    states, pooled = torch.randn(2, 77, 24), torch.randn(2, 8)
    for ids, told in (
        (torch.tensor([[64, 128, 0, 0, 64, 128]] * 2), None),
        (given := torch.tensor([[512.0, 768, 4, 8, 1024, 999], [64, 64, 0, 0, 128, 256]]), given),
    ):
        sizes = timestep_embedding(ids.flatten().float(), 16).reshape(2, -1)
        every = [states] * DEEPEST  # ldm's transformers want one for each of their blocks, sgm's do not
        want = native.unet(noisy, times, context=every, y=torch.cat([pooled, sizes], dim=1))
        close(model.predict(noisy, times, Conditioning(states, pooled, told)), want)


@pytest.mark.parametrize("version", ["sd2", "sdxl"])
def test_the_vaes_say_the_same_and_scale_by_version(version: str, request: pytest.FixtureRequest) -> None:
    native, model = request.getfixturevalue(version), request.getfixturevalue(f"{version}_model")
    scale = {"sd2": 0.18215, "sdxl": 0.13025}[version]
    torch.manual_seed(0)
    pixels = torch.rand(1, 3, 64, 32) * 2 - 1
    mean, logvar = native.vae.quant_conv(native.vae.encoder(pixels)).chunk(2, dim=1)
    close(model.encode_image(pixels), torch.cat([mean, (0.5 * logvar).exp()], dim=1) * scale)
    latents = torch.randn(1, 4, 8, 4)
    close(model.decode_latents(latents), native.vae.decoder(native.vae.post_quant_conv(latents / scale)))


@pytest.mark.parametrize("version", ["sd2", "sdxl"])
def test_parts_and_back_are_the_same_file(version: str, request: pytest.FixtureRequest) -> None:
    state = request.getfixturevalue(version).state()
    parts = compvis_to_parts(state)
    back = parts_to_compvis(parts, version)
    assert state.keys() - back.keys() <= {
        *("conditioner.embedders.1.model.logit_scale", "cond_stage_model.model.logit_scale"),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
    }
    assert back.keys() <= state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())
    part = "te2" if version == "sdxl" else "te1"
    tower = dict(parts[part])
    del tower["text_model.encoder.layers.0.self_attn.k_proj.weight"]
    with pytest.raises(BadFile, match="2 of the three projections"):
        parts_to_compvis({part: tower}, version)
    with pytest.raises(BadFile, match="'visual.x'"):
        parts_to_compvis({part: {**parts[part], "visual.x": torch.zeros(1)}}, version)


def test_a_full_size_model_has_every_target_that_kohya_trains() -> None:
    """192 + 138 of SD2 and 722 + 72 + 192 of SDXL, from the shapes of real models without memory."""
    for version, counts in (("sd2", {"unet": 192, "te1": 138}), ("sdxl", {"unet": 722, "te1": 72, "te2": 192})):
        file = live.full(version)
        names = {"unet": dict(file.model.diffusion_model.state_dict())}
        shapes = compvis_to_parts(
            {
                **{UNET_PREFIX + name: tensor for name, tensor in names["unet"].items()},
                "first_stage_model.quant_conv.weight": torch.zeros(1),
                **_texts(version),
            }
        )
        by_part = {part: {n: tuple(t.shape) for n, t in content.items()} for part, content in shapes.items()}
        configs = {"unet": unet_config(by_part["unet"], version, ModelConfig())}
        if version == "sdxl":
            configs["unet"]["addition_time_embed_dim"] = 256
        for part in ("te1", "te2"):
            if part in by_part:
                configs[part] = text_config(part, by_part[part], version, ModelConfig())
        made = {part: module_of(part, config) for part, config in configs.items()}
        model = DiffusersModel("x", made["unet"], None, made["te1"], None, "", text_encoder_2=made.get("te2"))
        layers = model.modules_by_key()
        for part, count in counts.items():
            targets = default_targets(part, version)
            assert len(targets) == count
            for path in targets:
                weight: Any = layers[LayerKey(part, path)].weight
                assert tuple(weight.shape) == by_part[part][f"{path}.weight"]
        assert (LayerKey("te2", "text_projection") in layers) == (version == "sdxl")
        assert model.slots().keys() == layers.keys()
        heads = configs["unet"]["attention_head_dim"]
        assert heads == ((5, 10, 20, 20) if version == "sd2" else (5, 10, 20))
        assert [configs[part]["num_attention_heads"] for part in configs if part != "unet"] == (
            [16] if version == "sd2" else [12, 20]
        )


def _texts(version: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        if version == "sd2":
            return {f"cond_stage_model.model.{n}": t for n, t in live.open_clip_tower("H").state_dict().items()}
        first, second = live.hf_tower("L"), live.open_clip_tower("bigG")
    return {
        **{f"conditioner.embedders.0.transformer.{n}": t for n, t in first.state_dict().items()},
        **{f"conditioner.embedders.1.model.{n}": t for n, t in second.state_dict().items()},
    }


def test_averaged_weights_are_taken_when_asked(sd2: Native, tmp_path: Path) -> None:
    from ldm.modules.ema import LitEma

    wrapper = torch.nn.Module()
    wrapper.diffusion_model = make("sd2", seed=5).unet.requires_grad_(True)
    averages = LitEma(wrapper).state_dict()
    state = sd2.state() | {f"model_ema.{name}": tensor.clone() for name, tensor in averages.items()}
    path = sd2.save(tmp_path / "ema.safetensors", state)
    plain, averaged = load_checkpoint(path), load_checkpoint(path, use_ema=True)
    assert plain.base_identity() != averaged.base_identity()
    want = Native("sd2", {UNET_PREFIX: wrapper.diffusion_model})
    for native, model in ((want, averaged), (sd2, plain)):
        got = model.unet.state_dict()
        assert all(torch.equal(got[name], tensor) for name, tensor in theirs(native, model.unet.config).items())
    for mine, other in ((plain.vae, averaged.vae), (plain.text_encoder, averaged.text_encoder)):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), other.parameters()))
    del state["model_ema.diffusion_modelout2bias"]
    sd2.save(path, state)
    with pytest.raises(BadFile, match=r"none for 'model.diffusion_model.out.2.bias'.*without use_ema"):
        load_checkpoint(path, use_ema=True)


def test_without_averages_it_says_so(sd2_file: Path) -> None:
    with pytest.raises(BadFile, match="EMA weights for 0 of the UNet's"):
        load_checkpoint(sd2_file, use_ema=True)


def test_number_formats_and_memory_of_its_own(sdxl: Native, tmp_path: Path) -> None:
    path = sdxl.save(tmp_path / "half.safetensors", {n: t.half() for n, t in sdxl.state().items()})
    model = load_checkpoint(path, dtype=None)
    assert model.dtype == torch.float16 and model.vae.dtype == torch.float32
    assert model.text_encoder.dtype == model.text_encoder_2.dtype == torch.float16
    assert model.to(dtype=torch.float16).vae.dtype == torch.float32
    assert model.to(dtype=torch.bfloat16).vae.dtype == torch.bfloat16
    assert load_checkpoint(path, dtype=torch.bfloat16).vae.dtype == torch.bfloat16
    places = [p.untyped_storage().data_ptr() for root in model.roots().values() for p in root.parameters()]
    assert len(set(places)) == len(places)


def test_an_sd2_file_without_the_block_that_is_not_run(
    sd2: Native, sd2_model: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers' and some of kohya's conversions write 23 blocks; here that is 2."""
    monkeypatch.setattr("lib_lora.models.part_config._LAST_RUN", LAYERS - 1)
    state = {n: t for n, t in sd2.state().items() if f".resblocks.{LAYERS - 1}." not in n}
    model = load_checkpoint(sd2.save(tmp_path / "short.safetensors", state), prediction_type="v_prediction")
    assert torch.equal(model.encode_text(["a cat"]).states, sd2_model.encode_text(["a cat"]).states)


def test_a_file_with_a_tensor_missing_names_it(sdxl: Native, tmp_path: Path) -> None:
    path, state = tmp_path / "a.safetensors", sdxl.state()
    del state["conditioner.embedders.1.model.text_projection"]
    del state["conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight"]
    with pytest.raises(BadFile, match=r"second text encoder: 4 tensors missing, 0 misshapen, first .*_proj\.weight"):
        load_checkpoint(sdxl.save(path, state))
    state = {name: t for name, t in sdxl.state().items() if not name.startswith("conditioner.embedders.1.")}
    with pytest.raises(BadFile, match="no weights of te2"):
        load_checkpoint(sdxl.save(path, state))
    state = sdxl.state() | {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(128, 100)}
    with pytest.raises(BadFile, match="100 channels of SDXL's sizes"):
        load_checkpoint(sdxl.save(path, state))


def test_the_same_from_a_pickle(sd2: Native, sd2_file: Path, sd2_model: DiffusersModel, tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": load_file(str(sd2_file)), "global_step": 5}, path)
    path.with_suffix(".yaml").write_text(sd2_file.with_suffix(".yaml").read_text())
    with safe_open(str(sd2_file), "pt") as file:
        assert file.metadata()  # which a pickle has none of: the text encoder's heads are width / 64 there
    model = load_checkpoint(path)
    for mine, other in ((model.unet, sd2_model.unet), (model.text_encoder, sd2_model.text_encoder)):
        got, want = mine.state_dict(), other.state_dict()
        assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
