"""What a checkpoint predicts: said by its metadata, marks or .yaml, tried, or said by the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lib_lora.errors import BadConfig
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.checkpoint_config import settings_of
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.models.prediction import assumed
from lib_lora.models.schedule import scaled_linear, zero_terminal

SGM = "model: {params: {denoiser_config: {params: {scaling_config: {target: sgm.x.%s}}}}}"
V2 = "model: {params: {unet_config: {params: {context_dim: 1024}}%s}}"


@pytest.mark.parametrize(
    ("metadata", "names", "yaml", "want"),
    [
        ({}, (), None, None),
        ({"modelspec.prediction_type": "v"}, (), None, "v_prediction"),
        ({"modelspec.predict_key": "V"}, (), None, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, (), None, "epsilon"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, (), None, "v_prediction"),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, (), None, "epsilon"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base"}, (), None, None),
        ({}, ("v_pred",), None, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, ("v_pred",), None, "v_prediction"),
        ({}, (), V2 % ", parameterization: v", "v_prediction"),
        ({}, (), V2 % "", "epsilon"),
        ({"modelspec.prediction_type": "v"}, (), V2 % "", "epsilon"),
        ({}, ("v_pred",), SGM % "EpsScaling", "epsilon"),
        ({}, (), SGM % "VScaling", "v_prediction"),
        ({}, (), SGM % "EDMScaling", None),
    ],
)
def test_what_files_say(
    metadata: dict[str, str], names: tuple[str, ...], yaml: str | None, want: str | None, tmp_path: Path
) -> None:
    if yaml is not None:
        (tmp_path / "x.yaml").write_text(yaml)
    settings = settings_of(tmp_path / "x.safetensors", metadata, names)
    assert settings.prediction_type == want and not settings.zero_terminal


def test_marks_of_a_checkpoint_and_what_the_user_says(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "marked.safetensors"
    marks = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    save_file({**load_file(str(tiny_checkpoint)), **marks}, str(path))
    model = load_checkpoint(path)
    assert model.prediction_type == "v_prediction"
    assert torch.equal(model.alphas_cumprod(), zero_terminal(scaled_linear()))
    assert load_checkpoint(path, prediction_type="epsilon").prediction_type == "epsilon"
    with pytest.raises(BadConfig, match="prediction type 'x0' is unknown"):
        load_checkpoint(path, prediction_type="x0")


class Even(nn.Module):
    """A UNet that adds a number to what it is given."""

    def __init__(self, added: float) -> None:
        super().__init__()
        self.added, self.scale = added, nn.Parameter(torch.ones(1))
        self.config: Any = type("Config", (), {"cross_attention_dim": 16})

    def forward(self, sample: torch.Tensor, times: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        assert times.tolist() == [999] and (sample == 0.5).all()
        return (sample + self.added,)


@pytest.mark.parametrize(("added", "want"), [(0.1, "epsilon"), (-0.9, "epsilon"), (-1.1, "v_prediction")])
def test_sd2_is_tried_and_it_is_said(added: float, want: str, caplog: pytest.LogCaptureFixture) -> None:
    model = DiffusersModel("some-sd2", Even(added), None, None, None, "", version="sd2")
    assert assumed(model) == want
    assert "some-sd2 does not say" in caplog.text and want in caplog.text and "parameterization: v" in caplog.text
    model.version = "sdxl"
    assert assumed(model) == "epsilon"
