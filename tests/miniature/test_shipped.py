"""The shipped checkpoint: SD1's names, its size, and that it draws what it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_lora.files.tensors import read_header
from lib_lora.keys.checkpoint import default_targets
from lib_lora.miniature.build_vae import fold_norms, soft_norms, start_from_averages
from lib_lora.miniature.exam import examine
from lib_lora.miniature.nets import new_vae
from lib_lora.miniature.place import checkpoint_path, export
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.diffusers_model import DiffusersModel


@pytest.fixture(scope="module")
def shipped() -> DiffusersModel:
    return load_checkpoint(checkpoint_path())


def test_it_is_small_and_has_every_name_of_sd15() -> None:
    assert checkpoint_path().stat().st_size <= 32 * 2**20
    unet_module = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel")
    with torch.device("meta"):
        unet = unet_module.UNetModel(
            image_size=32, in_channels=4, out_channels=4, model_channels=320, attention_resolutions=[4, 2, 1],
            num_res_blocks=2, channel_mult=[1, 2, 4, 4], num_heads=8, use_spatial_transformer=True,
            transformer_depth=1, context_dim=768, use_checkpoint=False, legacy=False,
        )  # fmt: skip
    prefix = "model.diffusion_model."
    names = {n.removeprefix(prefix) for n in read_header(checkpoint_path()).shapes() if n.startswith(prefix)}
    assert names == set(unet.state_dict())


def test_it_has_the_targets_of_sd15(shipped: DiffusersModel) -> None:
    paths = {"unet": set(), "te1": set()}
    for key in shipped.modules_by_key():
        paths[key.part].add(key.path)
    assert len(default_targets("unet")) == 192 and set(default_targets("unet")) <= paths["unet"]
    assert len(default_targets("te1")) == 72 and set(default_targets("te1")) <= paths["te1"]
    assert shipped.prediction_type == "epsilon"


def test_it_draws_what_it_is_asked_for(tmp_path: Path) -> None:
    result = examine(checkpoint_path(), count=20, sheet=tmp_path / "sheet.png")
    assert result["right"] >= 0.7, result["text"]
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def test_export_puts_three_things_in_place(tmp_path: Path) -> None:
    target = export(tmp_path / "models")
    assert target.read_bytes() == checkpoint_path().read_bytes()
    settings = target.with_suffix(".yaml").read_text()
    folder = Path(settings.split("version: ")[1].splitlines()[0])
    assert folder.is_absolute() and (folder / "vocab.json").is_file() and (folder / "config.json").is_file()
    again = load_checkpoint(target)
    assert torch.equal(
        again.encode_text(["a red circle"]).states,
        load_checkpoint(checkpoint_path()).encode_text(["a red circle"]).states,
    )


def test_folding_the_soft_norms_does_not_change_the_vae() -> None:
    torch.manual_seed(0)
    vae = soft_norms(new_vae())
    start_from_averages(vae)
    vae = vae.double().eval()
    pixels = torch.rand(1, 3, 64, 64, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean
        before = vae.decode(latents).sample
        # it already carries colours: the mean of each 8 x 8 block is close
        block = torch.nn.functional.avg_pool2d(pixels, 8)
        assert (torch.nn.functional.avg_pool2d(before, 8) - block).abs().mean() < 0.15
        fold_norms(vae)
        assert torch.allclose(vae.encode(pixels).latent_dist.mean, latents, atol=1e-12)
        assert torch.allclose(vae.decode(latents).sample, before, atol=1e-12)
    assert all(m.eps == 1e-6 for m in vae.modules() if isinstance(m, torch.nn.GroupNorm))
