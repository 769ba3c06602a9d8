"""Requests to patched weights: files found, cached, re-read, and every fault told without a crash."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_lora.files.codec import write_network
from lib_lora.files.library import NetworkLibrary
from lib_lora.keys.layer_key import TE1, UNET, LayerKey
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.models.sample import SampleRequest, sample
from lib_lora.networks.base import Layer, LayerSpec
from lib_lora.networks.lora import Lora
from lib_lora.networks.network import Network
from lib_lora.prompt import Moment, NetworkRequest, parse_arguments
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


def request(text: str) -> NetworkRequest:
    return parse_arguments(text.split(":"))


def test_every_step_has_its_strength_and_the_end_its_original_weights(model: DiffusersModel, tmp_path: Path) -> None:
    layers = write(tmp_path / "cat.safetensors", model, 1)
    runtime = Runtime(NetworkLibrary([tmp_path]))
    before = {key: weight(model, key).clone() for key in (Q, FC)}
    asked = [request("cat:0.5:0@0,1@1"), request("cat:te=0:unet=0.25:step=1-3")]
    reports = [runtime.activate(model, asked, Moment(0, 6))]
    seen = [weight(model, Q).clone()]
    for i in range(1, 6):
        report = runtime.advance(model, Moment(i, 6))
        seen.append(weight(model, Q).clone())
        assert report is not None
        reports.append(report)
        want = before[FC] + 0.5 * layers[FC].delta(before[FC])
        torch.testing.assert_close(weight(model, FC), want.detach())
    delta = layers[Q].delta(before[Q]).detach()
    for held, strength in zip(seen, [0, 0.25, 0.25 + 0.25, 0.5, 0.75, 1]):
        torch.testing.assert_close(held, before[Q] + strength * delta)
    assert {report.summary() for report in reports} == {reports[0].summary()} and reports[0].complete
    runtime.deactivate()
    assert all(torch.equal(weight(model, key), before[key]) for key in before)
    assert runtime.advance(model, Moment(2, 6)) is None
    assert torch.equal(weight(model, Q), before[Q])


def test_steps_that_change_nothing_cost_nothing(
    model: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "cat.safetensors", model, 1)
    runtime = Runtime(NetworkLibrary([tmp_path]))
    applied: list[Moment] = []
    real = runtime.patcher.apply
    monkeypatch.setattr(runtime.patcher, "apply", lambda *a: applied.append(Moment()) or real(*a))
    runtime.activate(model, [request("cat:0.5")], Moment(0, 8))
    assert [runtime.advance(model, Moment(i, 8)) for i in range(1, 8)] == [None] * 7
    assert len(applied) == 1
    runtime.activate(model, [request("cat:0.5:stop=4")], Moment(0, 8))
    changed = [i for i in range(1, 8) if runtime.advance(model, Moment(i, 8)) is not None]
    assert changed == [4] and len(applied) == 3
    runtime.activate(model, [request("cat:0.5")], Moment(0, 8))
    assert runtime.advance(model, Moment(4, 8)) is None, "the last picture's schedule is forgotten"
    runtime.deactivate()


def test_the_hires_pass(model: DiffusersModel, tmp_path: Path) -> None:
    layers = write(tmp_path / "cat.safetensors", model, 1)
    runtime = Runtime(NetworkLibrary([tmp_path]))
    before = weight(model, Q).clone()
    delta = layers[Q].delta(before).detach()
    asked = [request("cat:0.5:hr=0@0,1@1")]
    runtime.activate(model, asked, Moment(0, 4))
    torch.testing.assert_close(weight(model, Q), before + 0.5 * delta)
    runtime.activate(model, asked, Moment(0, 4, hires=True))
    torch.testing.assert_close(weight(model, Q), before)
    runtime.advance(model, Moment(3, 4, hires=True))
    torch.testing.assert_close(weight(model, Q), before + delta)
    runtime.deactivate()
    assert torch.equal(weight(model, Q), before)


def test_block_weights_reach_the_layers(model: DiffusersModel, tmp_path: Path) -> None:
    up = LayerKey(UNET, "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v")
    keys = (Q, FC, up)
    layers = write(tmp_path / "cat.safetensors", model, 1, keys)
    runtime = Runtime(NetworkLibrary([tmp_path]))
    before = {key: weight(model, key).clone() for key in keys}
    # BASE 0.5; IN01, where Q is, 0.25; OUT11, where `up` is, -1, but 2 for attn2
    vector = "0.5,0.25" + ",0" * 14 + ",-1"
    for tag, wanted in ((f"cat:2:lbw={vector}", (0.5, 1, -2)), (f"cat:2:lbw={vector}:lbwe=OUT11/attn2/2", (0.5, 1, 4))):
        runtime.activate(model, [request(tag)])
        for key, strength in zip((Q, FC, up), wanted):
            want = before[key] + strength * layers[key].delta(before[key])
            torch.testing.assert_close(weight(model, key), want.detach())
    report = runtime.activate(model, [request("cat:lbw=FLUXALL")])
    assert not report.networks and "61 of Flux" in report.errors[0]
    assert all(torch.equal(weight(model, key), before[key]) for key in keys)


def test_random_block_weights_follow_the_pictures_seed(model: DiffusersModel, tmp_path: Path) -> None:
    write(tmp_path / "cat.safetensors", model, 1)
    runtime = Runtime(NetworkLibrary([tmp_path]))
    asked = [request("cat:lbw=" + ",".join(["U"] * 17))]
    seen = []
    for seed in (3, 4, 3):
        runtime.activate(model, asked, Moment(), seed)
        seen.append(weight(model, Q).clone())
    runtime.deactivate()
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])


def test_networks_of_a_schedule_stay_in_memory_until_it_ends(
    model: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        write(tmp_path / f"n{i}.safetensors", model, i)
    import lib_lora.runtime as room

    read: list[weakref.ref[Network]] = []

    def reading(path: Path) -> Network:
        network = real(path)
        read.append(weakref.ref(network))
        return network

    real = room.read_network
    monkeypatch.setattr(room, "read_network", reading)
    runtime = Runtime(NetworkLibrary([tmp_path]), keep=1)
    runtime.activate(model, [request("n3")])
    asked = [request("n0:unet=0@0,1@1"), request("n1"), request("n2")]
    runtime.activate(model, asked, Moment(0, 5))
    gc.collect()
    assert read.pop(0)() is None, "three are needed, none beside them is wished for"
    for i in range(1, 5):
        runtime.advance(model, Moment(i, 5))
        (tmp_path / "n1.safetensors").touch()  # a picture is drawn with the files it began with
    assert len(read) == 3 and all(reference() is not None for reference in read)
    runtime.deactivate()
    gc.collect()
    assert [reference() is not None for reference in read] == [False, False, True], "the latest `keep`"
    runtime.activate(model, [request("n2")])
    assert len(read) == 3
    runtime.forget()
    gc.collect()
    assert not any(reference() is not None for reference in read)
    assert len(runtime.patcher.pristine) == 0


def test_an_overwritten_file_counts_from_the_next_picture_on(model: DiffusersModel, tmp_path: Path) -> None:
    path = tmp_path / "cat.safetensors"
    old = write(path, model, 1)
    runtime = Runtime(NetworkLibrary([tmp_path]))
    plain = weight(model, Q).clone()
    asked = [request("cat:0@0,1@1")]
    runtime.activate(model, asked, Moment(0, 4))
    new = write(path, model, 2)
    os.utime(path, ns=(1, 1))
    runtime.advance(model, Moment(3, 4))
    torch.testing.assert_close(weight(model, Q), (plain + old[Q].delta(plain)).detach())
    runtime.activate(model, asked, Moment(3, 4))
    torch.testing.assert_close(weight(model, Q), (plain + new[Q].delta(plain)).detach())
    path.unlink()
    assert runtime.advance(model, Moment(2, 4)) is not None, "what is in memory stays usable"
    assert runtime.activate(model, asked, Moment(0, 4)).errors
    assert torch.equal(weight(model, Q), plain)


def test_a_failing_activation_leaves_no_schedule_behind(
    model: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "cat.safetensors", model, 1)
    runtime = Runtime(NetworkLibrary([tmp_path]))
    plain = weight(model, Q).clone()
    runtime.activate(model, [request("cat:0@0,1@1")], Moment(0, 4))
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(runtime.patcher, "_apply", lambda *_: 1 / 0)
        runtime.activate(model, [request("cat:1@0,0@1")], Moment(0, 4))
    assert runtime.advance(model, Moment(2, 4)) is None
    assert torch.equal(weight(model, Q), plain) and runtime.active == ()


def test_a_model_of_another_kind_is_left_alone(model: DiffusersModel, tmp_path: Path) -> None:
    write(tmp_path / "cat.safetensors", model, 1)
    runtime = Runtime(NetworkLibrary([tmp_path]))
    runtime.activate(model, [request("cat:0@0,1@1")], Moment(0, 4))

    class Refiner:
        version = "sdxl"

        def slots(self) -> dict[LayerKey, object]:
            raise AssertionError("nobody looks at it")

        base_identity = slots

    assert runtime.advance(Refiner(), Moment(3, 4)) is None  # type: ignore[arg-type]
    runtime.deactivate()


def test_sampling_sees_each_steps_weights(
    model: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = write(tmp_path / "cat.safetensors", model, 1)
    runtime = Runtime(NetworkLibrary([tmp_path]))
    plain = {key: weight(model, key).clone() for key in (Q, FC)}
    seen: list[Tensor] = []
    texts: list[Tensor] = []
    told: list[tuple[int, int]] = []
    predict, encode = model.predict, model.encode_text
    monkeypatch.setattr(model, "predict", lambda *a: seen.append(weight(model, Q).clone()) or predict(*a))
    monkeypatch.setattr(model, "encode_text", lambda *a: texts.append(weight(model, FC).clone()) or encode(*a))
    steps = 5
    asked = [request("cat:te=0.5@0,1@1:unet=0@1,1@3")]
    runtime.activate(model, asked, Moment(0, steps))
    try:
        sample(
            model,
            SampleRequest(["a"], steps=steps, width=64, height=64),
            on_step=runtime.stepper(model, lambda done, of: told.append((done, of))),
        )
    finally:
        runtime.deactivate()
    assert told == [(i, steps) for i in range(1, steps + 1)]
    delta = layers[Q].delta(plain[Q]).detach()
    assert len(seen) == steps
    for held, strength in zip(seen, [0, 0, 0, 0.5, 1]):
        torch.testing.assert_close(held, plain[Q] + strength * delta)
    torch.testing.assert_close(texts[0], (plain[FC] + 0.5 * layers[FC].delta(plain[FC])).detach())
    assert all(torch.equal(weight(model, key), plain[key]) for key in plain)


def test_a_network_that_fits_several_models_is_applied_to_each(
    make_tiny: Callable[[int], DiffusersModel], tmp_path: Path
) -> None:
    model = make_tiny(8)
    write(tmp_path / "selfish.safetensors", model, 3, [Q])  # a self-attention: SD1 and SD2 have it, SDXL has not
    for version, applied in (("sd1", 1), ("sd2", 1), ("sdxl", 0)):
        model.version = version
        runtime = Runtime(NetworkLibrary([tmp_path]))
        report = runtime.activate(model, [NetworkRequest("selfish")])
        assert sum(n.applied for n in report.networks) == applied, version
        assert bool(report.errors) == (applied == 0)
        runtime.deactivate()
