"""Requests to patched weights: files found, cached, re-read, and every fault told without a crash."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_lora.files.codec import write_network
from lib_lora.files.library import NetworkLibrary
from lib_lora.keys.layer_key import TE1, UNET, LayerKey
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.networks.base import Layer, LayerSpec
from lib_lora.networks.lora import Lora
from lib_lora.networks.network import Network
from lib_lora.prompt import NetworkRequest
from lib_lora.runtime import Runtime

Q = LayerKey(UNET, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
FC = LayerKey(TE1, "text_model.encoder.layers.0.mlp.fc1")
SDXL = LayerKey("te2", "text_model.encoder.layers.0.mlp.fc1")


def write(path: Path, model: DiffusersModel, seed: int, keys: Sequence[LayerKey] = (Q, FC)) -> dict[LayerKey, Layer]:
    generator = torch.Generator().manual_seed(seed)
    layers: dict[LayerKey, Layer] = {}
    for key in keys:
        layer = Lora.init(LayerSpec(tuple(shape_of(model, key)), 2, 2.0), generator)
        layer.up.data.normal_(generator=generator)
        layers[key] = layer
    path.parent.mkdir(parents=True, exist_ok=True)
    write_network(path, Network(path.stem, layers))
    return layers


def shape_of(model: DiffusersModel, key: LayerKey) -> Sequence[int]:
    return weight(model, key).shape


def weight(model: DiffusersModel, key: LayerKey) -> Tensor:
    found = model.modules_by_key()[key].weight
    assert isinstance(found, Tensor)
    return found.detach()


@pytest.fixture(scope="module")
def model(make_tiny: Callable[[int], DiffusersModel]) -> DiffusersModel:
    return make_tiny(7)


def test_strengths_adding_up_and_deactivate(model: DiffusersModel, tmp_path: Path) -> None:
    layers = write(tmp_path / "cat.safetensors", model, 1)
    runtime = Runtime(NetworkLibrary([tmp_path]))
    before = {key: weight(model, key).clone() for key in (Q, FC)}
    report = runtime.activate(model, [NetworkRequest("cat", 0.5, 0.25), NetworkRequest("cat", 1.0, 1.0)])
    assert report.complete and [(n.name, n.applied) for n in report.networks] == [("cat", 2), ("cat", 2)]
    for key, strength in ((Q, 1.25), (FC, 1.5)):
        want = before[key] + strength * layers[key].delta(before[key])
        torch.testing.assert_close(weight(model, key), want.detach())
    runtime.deactivate()
    assert all(torch.equal(weight(model, key), before[key]) for key in before)


def test_faults_are_told_and_the_rest_is_applied(model: DiffusersModel, tmp_path: Path) -> None:
    write(tmp_path / "good.safetensors", model, 1)
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 50)
    write(tmp_path / "a" / "twin.safetensors", model, 1)
    write(tmp_path / "b" / "twin.safetensors", model, 2)
    runtime = Runtime(NetworkLibrary([tmp_path]))
    names = ["nobody", "broken", "twin", "good"]
    report = runtime.activate(model, [NetworkRequest(name) for name in names])
    assert [n.name for n in report.networks] == ["good"] and report.networks[0].applied == 2
    assert len(report.errors) == 3 and not report.complete
    for name in names[:3]:
        assert any(name in error for error in report.errors)
    assert runtime.activate(model, [NetworkRequest(name) for name in names]) == report
    assert len(report.summary().splitlines()) == 4
    assert runtime.activate(model, []).summary() == ""
    assert len(runtime.patcher.pristine) == 0


def test_a_network_of_another_base_model_is_refused_by_name(model: DiffusersModel, tmp_path: Path) -> None:
    names = {
        f"lora_te2_text_model_encoder_layers_0_mlp_fc1.{n}": torch.ones(2, 2)
        for n in ("lora_up.weight", "lora_down.weight")
    }
    from safetensors.torch import save_file

    save_file(names, str(tmp_path / "xl.safetensors"))
    report = Runtime(NetworkLibrary([tmp_path])).activate(model, [NetworkRequest("xl")])
    assert not report.networks and "SDXL" in report.errors[0] and "SD 1.x" in report.errors[0]


def test_an_overwritten_file_is_applied_anew(model: DiffusersModel, tmp_path: Path) -> None:
    path = tmp_path / "cat.safetensors"
    write(path, model, 1)
    runtime = Runtime(NetworkLibrary([tmp_path]))
    plain = weight(model, Q).clone()
    runtime.activate(model, [NetworkRequest("cat")])
    layers = write(path, model, 2)
    os.utime(path, ns=(1, 1))
    runtime.activate(model, [NetworkRequest("cat")])
    torch.testing.assert_close(weight(model, Q), (plain + layers[Q].delta(plain)).detach())
    path.unlink()
    report = runtime.activate(model, [NetworkRequest("cat")])
    assert report.errors and torch.equal(weight(model, Q), plain)


def test_files_are_read_once_and_only_the_latest_are_kept(
    model: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        write(tmp_path / f"n{i}.safetensors", model, i)
    import lib_lora.runtime as room

    reads: list[str] = []
    real = room.read_network
    monkeypatch.setattr(room, "read_network", lambda path: reads.append(path.stem) or real(path))
    runtime = Runtime(NetworkLibrary([tmp_path]), keep=2)
    all_three = [NetworkRequest(f"n{i}") for i in range(3)]
    first = runtime.activate(model, all_three)
    assert runtime.activate(model, all_three) == first
    assert reads == ["n0", "n1", "n2"], "an unchanged request reads nothing, whatever the cache holds"
    runtime.activate(model, [NetworkRequest("n2", 0.5)])
    runtime.activate(model, [NetworkRequest("n1")])
    assert reads == ["n0", "n1", "n2"]
    runtime.activate(model, [NetworkRequest("n0")])
    assert reads[3:] == ["n0"]
    runtime.deactivate()
