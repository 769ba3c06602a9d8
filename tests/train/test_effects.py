"""What is said to have no effect has none: files of jobs that differ in it alone are equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.train.config import fields, make_job
from lib_lora.train.effects import NEEDS, OWNED, SWITCHED, read_by_type, without_effect
from lib_lora.train.fit import UNUSED
from lib_lora.train.layers import new_layers
from lib_lora.train.sections import METHODS, TYPES

OTHERS: dict[str, Any] = {
    "network.rank": 2, "network.alpha": 3.0, "network.conv_rank": 2, "network.conv_alpha": 3.0, "network.tucker": True,
    "network.factor": 2, "network.full_matrix": True, "network.decompose_both": True, "network.constraint": 0.5,
    "network.rescale": True, "network.unit": 2, "network.rslora": True,
}  # fmt: skip
KEYS = {item.key for item in fields()}


def made(model: DiffusersModel, values: dict[str, Any]) -> dict[str, torch.Tensor]:
    network = make_job({"network.targets": "all", "network.rank": 4, "network.include": [], **values}).network
    layers = new_layers(model, network, torch.Generator().manual_seed(0))
    return {f"{key}.{name}": t for key, layer in layers.items() for name, t in layer.to_tensors().items()}


@pytest.mark.parametrize("kind", TYPES)
def test_a_type_reads_what_it_is_said_to_read(tiny_model: DiffusersModel, kind: str) -> None:
    usual = {
        "network.type": kind,
        "network.factor": 4,
        "network.unit": 1,
        "network.exclude": ["resnets.1", "up_blocks"],
    }
    before = made(tiny_model, usual)
    muted = without_effect(make_job(usual), "sd1")
    for key, value in OTHERS.items():
        if key in muted:
            after = made(tiny_model, {**usual, key: value})
            assert before.keys() == after.keys(), key
            assert all(torch.equal(before[name], after[name]) for name in before), key


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("lora", {"rank", "alpha", "conv_rank", "conv_alpha", "tucker"}),
        ("lokr", {"rank", "alpha", "factor", "decompose_both", "full_matrix"}),
        ("oft", {"rank", "constraint", "rescale"}),
        ("dylora", {"rank", "unit"}),
        ("norm", set()),
    ],
)
def test_what_types_read(kind: str, read: set[str]) -> None:
    assert read <= read_by_type(kind)


@pytest.mark.parametrize("method", METHODS)
def test_what_fit_knows_is_said(method: str) -> None:
    muted = without_effect(make_job({"method.name": method, "data.trigger": "xulek"}), "sd1")
    assert set(UNUSED.get(method, ())) <= muted.keys()
    assert all(key in KEYS or key == "concept" for key in muted)


def test_every_setting_named_is_one() -> None:
    named = {*NEEDS, *SWITCHED, *(other for other, _ in NEEDS.values()), *SWITCHED.values()}
    assert named <= KEYS
    assert all(any(key.startswith(start) for key in KEYS) for start in OWNED)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("data.bucket_step", {"data.buckets": True}),
        ("prior.images", {"prior.weight": 1.0}),
        ("optimizer.te_lr", {"network.train_text_encoder": True}),
        ("optimizer.path", {"optimizer.name": "custom"}),
        ("network.factor", {"network.type": "lokr"}),
        ("method.slider_positive", {"method.name": "slider"}),
        ("network.dora_axis", {"network.dora": True}),
        ("training.huber_delta", {"training.loss": "huber"}),
        ("output.keep_last", {"output.save_every": 10}),
    ],
)
def test_switches_wake_settings(key: str, values: dict[str, Any]) -> None:
    assert key in without_effect(make_job({}), "sd1")
    assert key not in without_effect(make_job(values), "sd1")


def test_sdxl_has_a_second_text_encoder() -> None:
    assert "network.train_text_encoder_2" in without_effect(make_job({}), "sd1")
    assert "network.train_text_encoder_2" not in without_effect(make_job({}), "sdxl")


def test_epochs_decide() -> None:
    assert "training.steps" in without_effect(make_job({"training.epochs": 3}), "sd1")
