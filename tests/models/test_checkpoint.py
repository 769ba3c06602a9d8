"""Loading CompVis checkpoints: sizes from shapes, settings from the .yaml, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_lora.errors import BadFile, UnknownFormat, WrongBaseModel
from lib_lora.models.checkpoint import identity_of, load_checkpoint
from lib_lora.models.checkpoint_config import TEXT_CONFIG_KEY
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.models.schedule import scaled_linear
from lib_lora.ports import Conditioning

ENTRY = "model.diffusion_model.input_blocks.0.0.weight"


def test_every_weight_and_the_outputs_are_the_same(tiny_model: DiffusersModel, tiny_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_checkpoint)
    assert (model.name, model.version, model.prediction_type) == ("tiny", "sd1", "epsilon")
    for mine, theirs in zip(
        (model.unet, model.vae, model.text_encoder), (tiny_model.unet, tiny_model.vae, tiny_model.text_encoder)
    ):
        got, want = mine.state_dict(), theirs.state_dict()
        assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in got)
        assert not mine.training and not any(p.requires_grad for p in mine.parameters())
    assert model.modules_by_key().keys() == tiny_model.modules_by_key().keys()
    noise, time = torch.randn(1, 4, 16, 16), torch.tensor([500])
    text = tiny_model.encode_text(["a cat"]).states
    assert torch.equal(model.encode_text(["a cat"]).states, text)
    assert torch.equal(
        model.predict(noise, time, Conditioning(text)), tiny_model.predict(noise, time, Conditioning(text))
    )
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(model.encode_image(pixels), tiny_model.encode_image(pixels))
    assert torch.equal(model.decode_latents(noise), tiny_model.decode_latents(noise))
    assert torch.equal(model.alphas_cumprod(), scaled_linear())


def test_settings_of_the_yaml_and_half_precision(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    state = load_file(str(tiny_checkpoint))
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.zeros(1, 77)  # as fp16 files have
    state["model_ema.decay"] = torch.tensor(0.5)
    save_file({name: tensor.half() for name, tensor in state.items()}, str(path))
    text = tiny_checkpoint.with_suffix(".yaml").read_text(encoding="utf-8")
    text = text.replace("scale_factor: 0.18215", "scale_factor: 0.5\n    parameterization: v").replace(
        "num_heads: 4", "num_heads: 2"
    )
    path.with_suffix(".yaml").write_text(text, encoding="utf-8")
    model = load_checkpoint(path, dtype=torch.bfloat16)
    assert model.prediction_type == "v_prediction" and model.vae.config.scaling_factor == 0.5
    assert (
        model.dtype == torch.bfloat16 and model.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.heads == 2
    )
    assert model.encode_text(["a cat"]).states.isfinite().all()


def test_text_heads_from_metadata_where_no_yaml_names_a_folder(
    tiny_checkpoint: Path, tiny_model: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib_lora.models.tokenizer._cache_roots", lambda: [tmp_path / "cache"])
    path = tmp_path / "alone.safetensors"
    state = load_file(str(tiny_checkpoint))
    save_file(state, str(path), {TEXT_CONFIG_KEY: json.dumps({"num_attention_heads": 4})})
    model = load_checkpoint(path)
    assert model.text_encoder.config.num_attention_heads == 4
    assert torch.equal(model.encode_text(["a cat"]).states, tiny_model.encode_text(["a cat"]).states)
    save_file(state, str(path))
    assert load_checkpoint(path).text_encoder.config.num_attention_heads == 1


def test_a_ckpt_is_read_without_running_it(tiny_checkpoint: Path, tiny_model: DiffusersModel, tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": load_file(str(tiny_checkpoint)), "epoch": 3}, path)
    shutil.copy(tiny_checkpoint.with_suffix(".yaml"), path.with_suffix(".yaml"))
    assert torch.equal(load_checkpoint(path).encode_text(["x"]).states, tiny_model.encode_text(["x"]).states)

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('was run')",)

    path.write_bytes(pickle.dumps({"state_dict": Bomb()}))
    with pytest.raises(BadFile, match="from somebody you trust"):
        load_checkpoint(path)


def test_other_models_are_refused_by_name(tmp_path: Path) -> None:
    entry = torch.zeros(32, 4, 3, 3)
    cases: list[tuple[dict[str, Tensor], type[Exception], str]] = [
        ({ENTRY: torch.zeros(32, 9, 3, 3)}, WrongBaseModel, "for inpainting.* 9 channels"),
        ({ENTRY: torch.zeros(32, 8, 3, 3)}, WrongBaseModel, "InstructPix2Pix.* 8 channels"),
        ({ENTRY: torch.zeros(32, 7, 3, 3)}, WrongBaseModel, "7 channels"),
        ({"model.diffusion_model.joint_blocks.0.x": entry}, WrongBaseModel, "SD 3"),
        ({"model.diffusion_model.double_blocks.0.x": entry}, WrongBaseModel, "Flux"),
        ({ENTRY: entry, "conditioner.embedders.0.model.ln_final.weight": entry}, WrongBaseModel, "refiner"),
        ({ENTRY: entry, "cond_stage_model.roberta.x": entry}, WrongBaseModel, "AltDiffusion"),
        ({ENTRY: entry, "embedder.model.x": entry}, WrongBaseModel, "unCLIP"),
        ({ENTRY: entry, "edm_mean": entry}, WrongBaseModel, "EDM"),
        ({"lora_unet_x.lora_up.weight": torch.zeros(2)}, UnknownFormat, "a network .*belongs into the prompt"),
        ({"down_blocks.0.x": torch.zeros(2)}, UnknownFormat, "diffusers' UNet"),
        ({"decoder.conv_in.weight": torch.zeros(2)}, UnknownFormat, "a VAE"),
        ({"x": torch.zeros(2)}, UnknownFormat, "no whole CompVis checkpoint;"),
        ({ENTRY: torch.zeros(4)}, UnknownFormat, "no whole CompVis checkpoint;"),
        ({ENTRY: entry}, BadFile, "no weights of vae, te1"),
        ({ENTRY: entry, "cond_stage_model.model.ln_final.weight": torch.zeros(2)}, BadFile, "no weights of vae among"),
        ({ENTRY: entry, "conditioner.embedders.0.x": torch.zeros(2)}, BadFile, "no weights of vae, te1, te2"),
    ]
    for state, kind, text in cases:
        path = tmp_path / "other.safetensors"
        save_file({name: tensor.clone() for name, tensor in state.items()}, str(path))
        with pytest.raises(kind, match=text):
            load_checkpoint(path)


def test_damaged_files_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no checkpoint file"):
        load_checkpoint(tmp_path / "none.safetensors")
    path = tmp_path / "cut.safetensors"
    path.write_bytes(tiny_checkpoint.read_bytes()[:100000])
    with pytest.raises(BadFile, match="cut.safetensors is not a readable"):
        load_checkpoint(path)
    state = load_file(str(tiny_checkpoint))
    del state["model.diffusion_model.out.2.bias"]
    save_file(state, str(path))
    shutil.copy(tiny_checkpoint.with_suffix(".yaml"), path.with_suffix(".yaml"))
    with pytest.raises(BadFile, match="1 tensors missing, 0 misshapen, first conv_out.bias"):
        load_checkpoint(path)
    state["model.diffusion_model.out.2.bias"] = torch.zeros(5)
    save_file(state, str(path))
    with pytest.raises(BadFile, match=r"1 misshapen, first conv_out.bias is \(5,\)"):
        load_checkpoint(path)
    path.with_suffix(".yaml").write_text("model: {params: {scale_factor: much}}")
    with pytest.raises(BadFile, match="cut.yaml"):
        load_checkpoint(path)


def test_identity_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = identity_of(path)
    assert first == identity_of(path)
    path.write_bytes(b"two")
    assert identity_of(path) != first


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_model_takes_and_gives_float32(tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    if dtype == torch.float16 and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 2):
        pytest.skip("this torch has no float16 convolution on the CPU")
    full, half = load_checkpoint(tiny_checkpoint), load_checkpoint(tiny_checkpoint, dtype=dtype)
    noise, times = torch.randn(2, 4, 8, 8), torch.tensor([500, 3])
    text = half.encode_text(["a cat", "a dog"]).states
    for states in (text, text.float()):
        got = half.predict(noise, times, Conditioning(states))
        want = full.predict(noise, times, Conditioning(text.float()))
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=0.1, atol=0.05 * float(want.abs().max()))
    assert half.predict(noise.double(), times, Conditioning(text)).dtype == torch.float64


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02.",  # a pickle that takes from an empty stack
        pickle.dumps({"a": 1}, protocol=2)[:-3],
        b"\x80\x02X\x04\x00\x00\x00\xff\xff\xff\xff.",  # no UTF-8
    ],
)
def test_a_damaged_pickle_is_told_as_a_bad_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(BadFile, match="x.ckpt is not a readable"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [{"state_dict": 5}, {1: torch.ones(2)}, {ENTRY: torch.tensor(1.0)}])
def test_a_pickle_of_something_else_is_no_checkpoint(tmp_path: Path, content: object) -> None:
    path = tmp_path / "x.ckpt"
    torch.save(content, path)
    with pytest.raises(UnknownFormat):
        load_checkpoint(path)


@pytest.mark.parametrize("stated", ["{", "[]", '{"num_attention_heads": 5}', '{"num_attention_heads": "x"}'])
def test_a_text_config_that_cannot_be_used(tiny_checkpoint: Path, tmp_path: Path, stated: str) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(load_file(str(tiny_checkpoint)), str(path), {TEXT_CONFIG_KEY: stated})
    with pytest.raises(BadFile, match="text encoder"):
        load_checkpoint(path)
