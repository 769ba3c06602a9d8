"""A diffusers folder as base: written by diffusers' own pipelines, in all the forms that folders have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_lora.errors import BadFile, UnknownFormat, WrongBaseModel
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.models.schedule import linear, zero_terminal
from tests.models.test_diffusers_text import pipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def sd1_folder(tiny_model: DiffusersModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    folder = tmp_path_factory.mktemp("folder") / "tiny-sd1"
    parts = (tiny_model.vae, tiny_model.text_encoder, tiny_model.tokenizer, tiny_model.unet)
    scheduler = DDIMScheduler(beta_schedule="linear", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    StableDiffusionPipeline(*parts, scheduler, None, None, requires_safety_checker=False).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sd1_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sd1_folder, tmp_path / "copy")


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def same(mine: Any, theirs: Any) -> None:
    got, want = mine.state_dict(), theirs.state_dict()
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    assert not mine.training and not any(p.requires_grad for p in mine.parameters())


def test_sd1_and_its_schedule(sd1_folder: Path, tiny_model: DiffusersModel) -> None:
    model = load_checkpoint(sd1_folder)
    assert (model.name, model.version, model.prediction_type) == ("tiny-sd1", "sd1", "v_prediction")
    for mine, theirs in (
        (model.unet, tiny_model.unet),
        (model.vae, tiny_model.vae),
        (model.text_encoder, tiny_model.text_encoder),
    ):
        same(mine, theirs)
    assert torch.equal(model.encode_text(["a cat"]).states, tiny_model.encode_text(["a cat"]).states)
    assert torch.equal(model.alphas_cumprod(), zero_terminal(linear()))
    assert load_checkpoint(sd1_folder, prediction_type="epsilon").prediction_type == "epsilon"


def test_sdxl(sdxl_model: DiffusersModel, tmp_path: Path) -> None:
    pipeline(sdxl_model).save_pretrained(tmp_path / "xl")
    model = load_checkpoint(tmp_path / "xl")
    assert (model.version, model.prediction_type) == ("sdxl", "epsilon")
    for part, root in model.roots().items():
        same(root, sdxl_model.roots()[part])
    got, want = model.encode_text(["a cat"]), sdxl_model.encode_text(["a cat"])
    assert got.pooled is not None and want.pooled is not None
    assert torch.equal(got.states, want.states) and torch.equal(got.pooled, want.pooled)
    noisy = torch.randn(1, 4, 8, 8)
    times = torch.tensor([7])
    assert torch.equal(model.predict(noisy, times, got), sdxl_model.predict(noisy, times, want))


def test_half_precision_variants_pickles_shards_and_old_names(folder: Path, tiny_model: DiffusersModel) -> None:
    unet, vae, text = folder / "unet", folder / "vae", folder / "text_encoder"
    state = load_file(str(unet / WEIGHTS))
    save_file({n: t.half() for n, t in state.items()}, str(unet / WEIGHTS.replace(".safe", ".fp16.safe")))
    half = load_checkpoint(folder, dtype=torch.bfloat16)  # reads the smaller file
    assert half.unet.conv_in.weight.equal(tiny_model.unet.conv_in.weight.half().to(torch.bfloat16))
    same(load_checkpoint(folder).unet, tiny_model.unet)
    # Only the variant is left, then shards, and the others as pickles; the VAE as diffusers < 0.17 wrote it.
    (unet / WEIGHTS).unlink()
    own = load_checkpoint(folder, dtype=None)
    assert own.dtype == torch.float16 and own.unet.conv_in.weight.equal(tiny_model.unet.conv_in.weight.half())
    (unet / WEIGHTS.replace(".safe", ".fp16.safe")).unlink()
    names = sorted(state)
    shards = {"a.safetensors": names[:100], "b.safetensors": names[100:]}
    for file, own_names in shards.items():
        save_file({n: state[n] for n in own_names}, str(unet / file))
    listed = {n: file for file, own_names in shards.items() for n in own_names}
    (unet / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": listed}))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(str(vae / WEIGHTS)).items():
        for new, was in old.items():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{was}.")
        renamed[name] = tensor
    assert sum("proj_attn" in name for name in renamed) == 4
    save_file(renamed, str(vae / WEIGHTS))
    torch.save(load_file(str(text / "model.safetensors")), text / "pytorch_model.bin")
    (text / "model.safetensors").unlink()
    model = load_checkpoint(folder)
    same(model.unet, tiny_model.unet)
    same(model.vae, tiny_model.vae)
    same(model.text_encoder, tiny_model.text_encoder)
    (unet / "b.safetensors").unlink()
    with pytest.raises(BadFile, match="lists b.safetensors, which are not there"):
        load_checkpoint(folder)


def test_a_pickle_is_not_run(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('was run')",)

    torch.save({"x": Bomb()}, folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / "unet" / WEIGHTS).unlink()
    with pytest.raises(BadFile, match="from somebody you trust"):
        load_checkpoint(folder)


def test_averaged_weights_have_a_folder(folder: Path, make_tiny: Any) -> None:
    with pytest.raises(BadFile, match="no EMA weights in unet_ema"):
        load_checkpoint(folder, use_ema=True)
    other = make_tiny(4).unet
    other.save_pretrained(folder / "unet_ema")
    same(load_checkpoint(folder, use_ema=True).unet, other)
    assert load_checkpoint(folder, use_ema=True).base_identity() != load_checkpoint(folder).base_identity()


def test_without_scheduler_and_tokenizer(
    folder: Path, tiny_model: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib_lora.models.tokenizer._cache_roots", lambda: [tmp_path / "cache"])
    shutil.rmtree(folder / "scheduler")
    shutil.rmtree(folder / "tokenizer")
    model = load_checkpoint(folder)
    assert model.prediction_type == "epsilon" and torch.equal(model.alphas_cumprod(), tiny_model.alphas_cumprod())
    assert torch.equal(model.encode_text(["a cat"]).states, tiny_model.encode_text(["a cat"]).states)


def test_other_models_are_refused(folder: Path) -> None:
    unet, index, schedule = (folder / p for p in ("unet/config.json", "model_index.json", "scheduler/x.json"))
    schedule = schedule.with_name("scheduler_config.json")
    change(schedule, prediction_type="sample")
    with pytest.raises(WrongBaseModel, match="prediction type 'sample'"):
        load_checkpoint(folder)
    change(schedule, prediction_type="epsilon", beta_schedule="squaredcos_cap_v2")
    with pytest.raises(WrongBaseModel, match="squaredcos_cap_v2"):
        load_checkpoint(folder)
    change(unet, in_channels=9)
    with pytest.raises(WrongBaseModel, match="9 channels"):
        load_checkpoint(folder)
    change(unet, in_channels=4)
    change(index, _class_name="FluxPipeline", unet=[None, None])
    with pytest.raises(WrongBaseModel, match="FluxPipeline"):
        load_checkpoint(folder)
    # the refiner has a second text encoder only
    change(index, _class_name="StableDiffusionXLImg2ImgPipeline", unet=["diffusers", "x"], text_encoder=[None, None])
    with pytest.raises(WrongBaseModel, match=r"networks are \['unet', 'vae'\]"):
        load_checkpoint(folder)
    index.write_text("[]")
    with pytest.raises(BadFile, match="no JSON object"):
        load_checkpoint(folder)
    index.unlink()
    with pytest.raises(UnknownFormat, match="no model_index.json"):
        load_checkpoint(folder)
