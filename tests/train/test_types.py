"""Every type of network from job to prompt: the file, applied by its tag, is what the model computed in training."""

from __future__ import annotations

import json
from collections import Counter
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
from lib_lora.ports import Conditioning
from lib_lora.prompt import extract
from lib_lora.runtime import Runtime
from lib_lora.train.checkpoint import load_state
from lib_lora.train.engine import train
from lib_lora.train.session import prepare
from tests.train.trained import CASES, PROMPT, Make, job_of, output


def test_all_declared_types_are_there() -> None:
    from lib_lora.train.sections import TYPES

    assert {name.split()[0] for name in CASES} == set(TYPES)


@pytest.mark.parametrize("name", CASES)
def test_the_file_is_what_was_trained(trained: Make, tiny_model: DiffusersModel, name: str) -> None:
    made, case = trained(name), CASES[name]
    runtime = Runtime(NetworkLibrary([made.file.parent]))
    report = runtime.activate(tiny_model, extract(f"{PROMPT} <lora:{made.file.stem}:1>")[1])
    got = output(tiny_model)
    runtime.forget()
    assert torch.equal(output(tiny_model), made.plain)
    size = float(made.plain.abs().max())
    assert float((got - made.attached).abs().max()) < 1e-4 * size
    assert float((made.attached - made.plain).abs().max()) > 1e-2 * size
    assert report.complete and not report.errors
    assert [(n.applied, n.unmatched, n.mismatched) for n in report.networks] == [(sum(case.layers), (), ())]


@pytest.mark.parametrize("name", CASES)
def test_the_file_says_what_it_is(trained: Make, name: str) -> None:
    made, case = trained(name), CASES[name]
    tensors, metadata = load_file(str(made.file)), read_header(made.file).metadata
    parts = Counter(layer.split("_")[1] for layer in {tensor.split(".")[0] for tensor in tensors})
    assert (parts["unet"], parts["te"]) == case.layers and parts.total() == sum(case.layers)
    assert all(t.dtype == torch.float32 for n, t in tensors.items() if not n.endswith(".on_input"))
    args = json.loads(metadata["ss_network_args"])
    assert args | case.args == args
    assert metadata["ss_network_module"] == ("lycoris.kohya" if "algo" in args else "networks.lora")
    assert ("algo" in args) == ("algo" in case.args or name.startswith("oft"))
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "2.0")
    assert ("ss_text_encoder_lr" in metadata) == (case.layers[1] > 0)


def test_two_text_encoders(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("ldm")
    from tests.models import native

    model = load_checkpoint(native.make("sdxl").save(tmp_path / "xl.safetensors"))
    more: dict[str, Any] = {
        "network.train_text_encoder": True,
        "network.train_text_encoder_2": True,
        "optimizer.te2_lr": 0.02,
        "data.resolution": 128,
    }
    job = job_of("lora", pictures, tmp_path, **more)
    result = train(job, model)
    session = prepare(job, model, result.folder)
    load_state(result.folder / "checkpoints" / "state.safetensors", session)

    def answer() -> tuple[Conditioning, Tensor]:
        noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            text = model.encode_text([PROMPT])
            return text, model.predict(noisy, torch.tensor([500]), text)

    with session.best(), session.attached():
        attached, predicted = answer()
    plain, _ = answer()
    runtime = Runtime(NetworkLibrary([result.file.parent]))
    report = runtime.activate(model, extract("<lora:lora:1>")[1])
    applied, got = answer()
    runtime.forget()
    assert report.complete
    assert torch.allclose(got, predicted, rtol=0, atol=1e-4)
    for ours, theirs, before in (
        (applied.states, attached.states, plain.states),
        (applied.pooled, attached.pooled, plain.pooled),
    ):
        assert ours is not None and theirs is not None and before is not None
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-4)
        assert not torch.allclose(theirs, before, rtol=0, atol=1e-2)
    metadata, names = read_header(result.file).metadata, load_file(str(result.file))
    assert (metadata["ss_base_model_version"], metadata["ss_v2"]) == ("sdxl_base_v1-0", "False")
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert {name.split("_")[1] for name in names} == {"unet", "te1", "te2"}
