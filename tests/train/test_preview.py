"""Sample pictures are drawn as the job trains: its prediction and its schedule, not only the model's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.train.config import JobConfig
from lib_lora.train.engine import train
from lib_lora.train.preview import AsTrained


def test_previews_read_the_model_as_the_job_does(
    make: Callable[..., JobConfig], tiny_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def draw(model: Any, request: Any) -> list[Image.Image]:
        seen.append((model.prediction_type, model.alphas_cumprod(), model.version))
        return [Image.new("RGB", (8, 8))]

    monkeypatch.setattr("lib_lora.models.sample.sample", draw)
    for changes in ({}, {"base__prediction": "v_prediction", "training__zero_terminal_snr": True}):
        train(make(training__steps=1, output__sample_every=1, **changes), tiny_model)
    own = tiny_model.alphas_cumprod()
    assert [(kind, version) for kind, _, version in seen] == [("epsilon", "sd1"), ("v_prediction", "sd1")]
    assert torch.equal(seen[0][1], own)
    assert float(seen[1][1][-1]) < 1e-6 < float(own[-1])


def test_another_reading_draws_another_picture(tiny_model: DiffusersModel, tmp_path: Path) -> None:
    from lib_lora.models.sample import SampleRequest, sample

    request = SampleRequest(("a cat",), steps=2, width=128, height=128, cfg=1.0)
    own = sample(tiny_model, request)[0]
    same: Any = AsTrained(tiny_model, "epsilon", ends_in_noise=False)
    other: Any = AsTrained(tiny_model, "v_prediction", ends_in_noise=True)
    assert sample(same, request)[0].tobytes() == own.tobytes()
    assert sample(other, request)[0].tobytes() != own.tobytes()
