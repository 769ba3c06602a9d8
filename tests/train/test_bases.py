"""Training on SD2 with v-prediction and on SDXL with both text encoders: from job to file to tag."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lib_lora.files.codec import base_versions, read_network
from lib_lora.files.library import NetworkLibrary
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.prompt import extract
from lib_lora.runtime import Runtime
from lib_lora.train.config import JobConfig
from lib_lora.train.engine import train
from lib_lora.train.session import prepare
from tests.models.files import sd2, sd2_file, sd2_model, sdxl, sdxl_file, sdxl_model

__all__ = ["sd2", "sd2_file", "sd2_model", "sdxl", "sdxl_file", "sdxl_model"]
Make = Callable[..., JobConfig]
PROMPT = "a red toy"


@pytest.fixture(params=["sd2", "sdxl"])
def model(request: pytest.FixtureRequest) -> DiffusersModel:
    return request.getfixturevalue(f"{request.param}_model")


def output(model: DiffusersModel) -> torch.Tensor:
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([500]), model.encode_text([PROMPT]))


def job_of(make: Make, model: DiffusersModel, **changes: Any) -> JobConfig:
    settings = {
        "training__steps": 2, "data__resolution": 128, "network__train_text_encoder": True,
        "network__train_text_encoder_2": model.version == "sdxl", "optimizer__lr": 0.02, "optimizer__te_lr": 0.02,
        "output__sidecar": False, **changes,
    }  # fmt: skip
    return make(**settings)


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_a_network_of_every_part_is_applied_by_its_tag(make: Make, model: DiffusersModel, kind: str) -> None:
    plain = output(model)
    result = train(job_of(make, model, network__type=kind, training__checkpointing=kind == "lora"), model)
    assert torch.equal(output(model), plain)
    network = read_network(result.file)
    parts = {"unet", "te1", "te2"} if model.version == "sdxl" else {"unet", "te1"}
    assert network.parts().keys() == parts and network.unknown == ()
    assert model.version in base_versions(network)
    expected = {"sd2": "sd_v2_v", "sdxl": "sdxl_base_v1-0"}[model.version]
    assert network.metadata["ss_base_model_version"] == expected
    runtime = Runtime(NetworkLibrary([result.folder]))
    try:
        report = runtime.activate(model, extract(f"{PROMPT} <lora:toy:1>")[1])
        assert report.complete, report.summary()
        applied = output(model)
    finally:
        runtime.deactivate()
    assert torch.equal(output(model), plain)
    assert not torch.allclose(applied, plain, atol=1e-3)


def test_sdxl_is_told_the_sizes_of_each_picture(make: Make, sdxl_model: DiffusersModel, tmp_path: Path) -> None:
    job = job_of(make, sdxl_model, data__buckets=True, data__bucket_step=32, data__bucket_low=64)
    session = prepare(job, sdxl_model, tmp_path)
    told: list[torch.Tensor] = []
    honest = sdxl_model.predict

    def listen(noisy: torch.Tensor, times: torch.Tensor, text: Any) -> torch.Tensor:
        told.append(text.time_ids)
        return honest(noisy, times, text)

    session.model.predict = listen  # type: ignore[method-assign]
    try:
        session.backward(0)
    finally:
        del session.model.predict
    width, height = session.dataset.items[0].bucket
    assert (width, height) == (160, 96)
    assert [ids.tolist()[0][:2] for ids in told] == [[64.0, 96.0]]  # the pictures are 96 x 64
    assert told[0][0, 4:].tolist() == [float(height), float(width)]


def test_new_words_and_checkpoints(make: Make, model: DiffusersModel, tmp_path: Path) -> None:
    trigger: dict[str, Any] = {"data__trigger": "<cat>", "data__class_word": "cat"}
    trigger |= {"network__train_text_encoder": False, "network__train_text_encoder_2": False}
    words = job_of(make, model, method__name="textual_inversion", method__tokens=2, output__name="words", **trigger)
    vectors = load_file(str(train(words, model).file))
    widths = {part: t.shape[1] for part, t in model.token_vectors("cat").items()}
    if model.version == "sdxl":
        assert {name: tuple(t.shape) for name, t in vectors.items()} == {
            "clip_l": (2, widths["te1"]), "clip_g": (2, widths["te2"]),
        }  # fmt: skip
    else:
        assert {name: tuple(t.shape) for name, t in vectors.items()} == {"emb_params": (2, widths["te1"])}

    job = job_of(make, model, method__name="dreambooth", optimizer__lr=1e-3, optimizer__te_lr=1e-3)
    session = prepare(job, model, tmp_path)
    for step in range(2):
        session.backward(step)
        session.unscaled_norm()
        session.update(finite=True)
    with session.attached():
        expected = output(model)
    file = train(job, model).file
    assert model.source is not None
    if model.source.with_suffix(".yaml").exists():
        file.with_suffix(".yaml").write_bytes(model.source.with_suffix(".yaml").read_bytes())
    tuned = load_checkpoint(file, prediction_type=model.prediction_type)
    assert torch.allclose(output(tuned), expected, atol=1e-4)
    assert not torch.allclose(expected, output(model), atol=1e-3)
