"""One short run of every type of network, made once: its file, and what the model computed while it was attached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.train.checkpoint import load_state
from lib_lora.train.config import JobConfig, make_job
from lib_lora.train.engine import train
from lib_lora.train.session import prepare

STEPS = 2
PROMPT = "a red sks toy"
TEXT = {"network.train_text_encoder": True}
DORA = {"network.dora": True}
ROWS = {**DORA, "network.dora_axis": "rows"}
CROSS = {"network.targets": "cross_attention"}


@dataclass(frozen=True)
class Case:
    """What a job sets beside its type, how many layers of UNet and text encoder that gives, what the metadata say."""

    changes: Mapping[str, Any]
    layers: tuple[int, int]
    args: Mapping[str, Any]


CONV = 192 + 86  # kohya's layers, and the convolutions of resnets and samplers
CASES: dict[str, Case] = {
    "lora": Case(TEXT, (192, 72), {}),
    "locon": Case(TEXT, (CONV, 72), {"conv_dim": 2, "conv_alpha": 1.0}),
    "loha": Case(TEXT, (CONV, 72), {"algo": "loha"}),
    "lokr": Case({**TEXT, "network.factor": 4}, (CONV, 72), {"algo": "lokr", "factor": 4}),
    "ia3": Case(TEXT, (80, 36), {"algo": "ia3"}),
    "glora": Case(TEXT, (192, 72), {"algo": "glora"}),
    "full": Case(TEXT, (192, 72), {"algo": "full"}),
    "norm": Case(TEXT, (108, 24), {"algo": "norm"}),
    "dylora": Case({**TEXT, "network.unit": 2}, (192, 72), {"unit": 2}),
    "oft": Case(TEXT, (192, 72), {"algo": "oft"}),
    "oft constrained": Case(
        {**CROSS, "network.constraint": 0.01, "network.rescale": True}, (64, 0), {"constraint": 0.01, "rescaled": True}
    ),
    "boft": Case(TEXT, (192, 72), {"algo": "boft"}),
    "lora dora": Case({**TEXT, **DORA}, (192, 72), {"dora_wd": True}),
    "lora dora rows": Case({**CROSS, **ROWS}, (64, 0), {"dora_wd": True}),
    "locon dora": Case(DORA, (CONV, 0), {"dora_wd": True}),
    "lokr dora rows": Case({**CROSS, **ROWS}, (64, 0), {"algo": "lokr", "dora_wd": True}),
    "lora rslora": Case({"network.rslora": True}, (192, 0), {"rs_lora": True}),
    "locon tucker": Case({"network.tucker": True}, (CONV, 0), {"use_tucker": True}),
    "loha tucker": Case({"network.tucker": True}, (CONV, 0), {"algo": "loha", "use_tucker": True}),
    "full bias": Case({**CROSS, "network.train_bias": True}, (64, 0), {"algo": "full"}),
    "lora norms": Case({**TEXT, "network.train_norms": True}, (192 + 64, 72 + 24), {"train_norm": True}),
}


@dataclass(frozen=True)
class Trained:
    """A finished run's job and file; the output before it, and with the final parameters attached."""

    job: JobConfig
    file: Path
    plain: Tensor
    attached: Tensor


Make = Callable[[str], Trained]


def output(model: DiffusersModel) -> Tensor:
    """What the UNet says of fixed noise and a fixed prompt."""
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([500]), model.encode_text([PROMPT]))


def job_of(name: str, pictures: Path, folder: Path, **changes: Any) -> JobConfig:
    """The job of a case."""
    values = {
        "data.folder": str(pictures),
        "data.trigger": "sks",
        "data.resolution": 64,
        "network.type": name.split()[0],
        "network.rank": 4,
        "network.alpha": 2.0,
        "network.conv_rank": 2,
        "network.conv_alpha": 1.0,
        "optimizer.lr": 0.02,  # so that two steps change the picture well above rounding
        "optimizer.te_lr": 0.02,
        "training.steps": STEPS,
        "training.batch_size": 2,
        "output.folder": str(folder / "runs"),
        "output.network_folder": str(folder / "networks"),
        "output.name": name.replace(" ", "-"),
        "output.dtype": "fp32",
        "output.sidecar": False,
    }
    return make_job({**values, **CASES[name].changes, **changes})


def run(job: JobConfig, model: DiffusersModel) -> Trained:
    """Train; the attached output is of the parameters in the run's state, not of those in its file."""
    plain = output(model)
    result = train(job, model)
    session = prepare(job, model, result.folder)
    assert load_state(result.folder / "checkpoints" / "state.safetensors", session) == job.training.steps
    with session.best(), session.attached():
        attached = output(model)
    assert torch.equal(output(model), plain)
    return Trained(job, result.file, plain, attached)
