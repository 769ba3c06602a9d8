"""Estimates against files really made on the tiny model, and against the figures everybody knows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_lora.errors import BadConfig
from lib_lora.files.codec import network_tensors, write_network
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.networks.network import Network
from lib_lora.train.base_shapes import Widths
from lib_lora.train.config import make_job
from lib_lora.train.estimate import Estimator, visits_of
from lib_lora.train.hypernetwork import HypernetworkLearner
from lib_lora.train.layers import new_layers
from lib_lora.train.sections import METHODS, TYPES

TINY = Widths("sd1", (32, 64, 32, 32), 32, (32,), linear=False, mlp=2)  # of tests/conftest.py


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("changes", [{}, {"network.train_text_encoder": True, "network.train_norms": True}])
def test_the_size_is_that_of_the_file(
    tiny_model: DiffusersModel, tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    values = {"network.type": kind, "network.rank": 4, "network.unit": 2, "output.dtype": "fp16", **changes}
    job = make_job(values)
    layers = new_layers(tiny_model, job.network, torch.Generator().manual_seed(0))
    network = Network("x", layers, version="sd1")
    size = Estimator(TINY).size(job, "sd1")
    assert size is not None
    assert size.layers == len(layers)
    assert size.numbers == sum(p.numel() for layer in layers.values() for p in layer.parameters())
    write_network(tmp_path / "x.safetensors", network, {}, torch.float16)
    written = (tmp_path / "x.safetensors").stat().st_size
    count = len(network_tensors(network, torch.float16))
    assert abs(size.file - written) <= 5 * count + 40  # offsets have fewer digits at the beginning


def test_ranks_by_pattern_dora_and_bias_are_counted(tiny_model: DiffusersModel) -> None:
    values = {
        "network.ranks": ["attn1=2", "mid_block=6:3"],
        "network.exclude": ["ff"],
        "network.dora": True,
        "network.type": "locon",
        "network.conv_rank": 3,
        "network.train_bias": True,
    }
    job = make_job(values)
    layers = new_layers(tiny_model, job.network, torch.Generator())
    size = Estimator(TINY).size(job, "sd1")
    assert size is not None
    assert size.numbers == sum(p.numel() for layer in layers.values() for p in layer.parameters())


def test_a_hypernetwork_is_counted(tiny_model: DiffusersModel) -> None:
    job = make_job({"method.name": "hypernetwork", "method.hyper_layers": "1, 1.5, 1", "method.hyper_norm": True})
    learner = HypernetworkLearner(tiny_model, job.method, torch.Generator())
    size = Estimator(TINY).size(job, "sd1")
    assert size is not None and size.numbers == sum(p.numel() for p in learner.parameters().values())


def test_the_usual_lora_is_as_large_as_everybody_knows_it() -> None:
    estimator = Estimator()
    size = estimator.size(make_job({"network.rank": 128, "network.train_text_encoder": True}), "sd1")
    assert size is not None and size.layers == 264 and 151.0e6 < size.file < 151.2e6  # "144 MB" in file managers
    xl = estimator.size(make_job({"network.rank": 32}), "sdxl")
    assert xl is not None and xl.layers == 722 and 165e6 < xl.file < 175e6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("version", ["sd1", "sd2", "sdxl"])
def test_every_method_has_an_estimate(method: str, version: str) -> None:
    job = make_job({"method.name": method, "data.trigger": "xulek", "method.slider_positive": "old"})
    size, memory = Estimator().size(job, version), Estimator().memory(job, version)
    assert size is not None and size.numbers > 0 and size.file > 0
    assert memory is not None and memory > 2e9


def test_a_checkpoint_is_as_large_as_the_base() -> None:
    size = Estimator().size(make_job({"method.name": "dreambooth"}), "sd1")
    assert size is not None and 2.1e9 < size.file < 2.2e9


def test_unknown_versions_have_none() -> None:
    assert Estimator().size(make_job({}), "flux") is None
    assert Estimator().memory(make_job({}), "flux") is None


def test_a_wrong_pattern_is_told() -> None:
    with pytest.raises(BadConfig, match="no regular expression"):
        Estimator().size(make_job({"network.include": ["("]}), "sd1")


@pytest.mark.parametrize(
    ("gigabytes", "version", "values"),
    [
        (6, "sd1", {"training.checkpointing": True}),
        (8, "sd1", {"training.batch_size": 2, "network.train_text_encoder": True}),
        (12, "sd1", {"training.batch_size": 4}),
        (24, "sd1", {"training.batch_size": 8, "network.rank": 32}),
        (12, "sdxl", {"training.checkpointing": True, "data.resolution": 1024, "optimizer.name": "adamw8bit"}),
        (24, "sdxl", {"training.checkpointing": True, "data.resolution": 1024, "training.batch_size": 4}),
    ],
)
def test_jobs_of_the_table_fit_their_cards(gigabytes: int, version: str, values: dict[str, Any]) -> None:
    needs = Estimator().memory(make_job(values), version)
    assert needs is not None and needs < gigabytes * 1e9


@pytest.mark.parametrize(
    "change",
    [
        {"training.batch_size": 4},
        {"data.resolution": 1024},
        {"network.rank": 512},
        {"training.checkpointing": False},
        {"network.train_text_encoder": True},
        {"prior.weight": 1.0},
        {"base.dtype": "fp32"},
        {"optimizer.name": "prodigy", "network.rank": 256},
    ],
)
def test_what_costs_memory_is_told_to_cost_more(change: dict[str, Any]) -> None:
    usual = {"training.checkpointing": True}
    before, after = (Estimator().memory(make_job({**usual, **more}), "sd1") for more in ({}, change))
    assert before is not None and after is not None and after > before


def test_visits() -> None:
    job = make_job({"training.steps": 600, "training.batch_size": 2})
    visits = visits_of(job, 12)
    assert (visits.visits, visits.each, visits.epochs, visits.steps) == (1200, 100, 100, 600)
    assert visits_of(job, 0).each == 0
    epochs = make_job({"training.epochs": 10, "training.batch_size": 4, "data.repeats": 3})
    assert dataclasses.astuple(visits_of(epochs, 5)) == (38, 4, 150, 5, 30, 10)
    assert visits_of(epochs, 0).steps == 1000
