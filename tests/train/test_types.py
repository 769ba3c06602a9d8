"""Every type of network from job to prompt: the file, applied by its tag, is what the model computed in training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lib_lora.files.library import NetworkLibrary
from lib_lora.files.tensors import read_header
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.prompt import extract
from lib_lora.runtime import Runtime
from lib_lora.train.checkpoint import load_state
from lib_lora.train.config import JobConfig
from lib_lora.train.engine import train
from lib_lora.train.session import prepare

Make = Callable[..., JobConfig]
TEXT = {"network__train_text_encoder": True}
FAST = {"optimizer__lr": 0.02, "optimizer__te_lr": 0.02}  # so that two steps change the picture well above rounding
# what a job sets beside its type -> layers of UNet and text encoder, and what the metadata say of it
CASES: dict[str, tuple[dict[str, Any], tuple[int, int], dict[str, Any]]] = {
    "lora": (TEXT, (192, 72), {}),
    "locon": (TEXT, (192 + 86, 72), {"conv_dim": 8, "conv_alpha": 4.0}),
    "loha": (TEXT, (192 + 86, 72), {"algo": "loha"}),
    "lokr": ({**TEXT, "network__factor": 4}, (192 + 86, 72), {"algo": "lokr", "factor": 4}),
    "ia3": (TEXT, (80, 36), {"algo": "ia3"}),
    "glora": (TEXT, (192, 72), {"algo": "glora"}),
    "full": (TEXT, (192, 72), {"algo": "full"}),
    "norm": (TEXT, (109, 25), {"algo": "norm"}),
    "dylora": ({**TEXT, "network__unit": 2}, (192, 72), {"unit": 2}),
    "oft": (TEXT, (192, 72), {"algo": "oft"}),
    "boft": (TEXT, (192, 72), {"algo": "boft"}),
    "lora dora": ({"network__dora": True}, (192, 0), {"dora_wd": True}),
    "lokr dora rows": (
        {"network__dora": True, "network__dora_axis": "rows", "network__targets": "cross_attention"},
        (64, 0),
        {"algo": "lokr", "dora_wd": True},
    ),
    "lora rslora": ({"network__rslora": True}, (192, 0), {"rs_lora": True}),
    "locon tucker": ({"network__tucker": True}, (192 + 86, 0), {"use_tucker": True}),
    "loha tucker": ({"network__tucker": True}, (192 + 86, 0), {"use_tucker": True}),
    "full bias": ({"network__train_bias": True}, (192, 0), {"algo": "full"}),
    "lora norms": ({**TEXT, "network__train_norms": True}, (192 + 64, 72 + 25), {"train_norm": True}),
}


def output(model: DiffusersModel) -> Tensor:
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([500]), model.encode_text(["a red sks toy"]))


def as_trained(job: JobConfig, model: DiffusersModel, run: Path) -> Tensor:
    """What the model computes with the final parameters attached, taken from the run's state, not from its file."""
    session = prepare(job, model, run)
    assert load_state(run / "checkpoints" / "state.safetensors", session) == session.plan.steps
    with session.best(), session.attached():
        return output(model)


def by_tag(model: DiffusersModel, file: Path) -> tuple[Tensor, Any]:
    """The output with the file applied as its tag asks, and the report."""
    runtime = Runtime(NetworkLibrary([file.parent]))
    report = runtime.activate(model, extract(f"a red sks toy <lora:{file.stem}:1>")[1])
    try:
        return output(model), report
    finally:
        runtime.forget()


@pytest.mark.parametrize("name", CASES)
def test_the_file_is_what_was_trained(make: Make, tiny_model: DiffusersModel, tmp_path: Path, name: str) -> None:
    changes, (unet, text), told = CASES[name]
    kind = name.split()[0]
    job = make(
        network__type=kind, training__steps=2, network__conv_rank=8, network__conv_alpha=4.0,
        output__network_folder=str(tmp_path / "networks"), **FAST, **changes,
    )  # fmt: skip
    plain = output(tiny_model)
    result = train(job, tiny_model)
    assert torch.equal(output(tiny_model), plain)
    expected = as_trained(job, tiny_model, result.folder)
    got, report = by_tag(tiny_model, result.file)
    assert torch.equal(output(tiny_model), plain)
    size = float(plain.abs().max())
    assert float((got - expected).abs().max()) < 1e-4 * size
    assert float((expected - plain).abs().max()) > 1e-2 * size

    assert report.complete and not report.errors
    (applied,) = report.networks
    assert applied.applied == unet + text
    tensors = load_file(str(result.file))
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    metadata = read_header(result.file).metadata
    own = json.loads(metadata["ss_network_args"])
    assert own | told == own
    assert metadata["ss_network_module"] == ("networks.lora" if "algo" not in own else "lycoris.kohya")
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "4.0")
