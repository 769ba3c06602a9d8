"""Whole runs on real modules: what they write, that they are exact, and that the base is untouched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_lora.errors import BadConfig, BadDataset, BadFile, BadTag, Cancelled, TrainingFailed
from lib_lora.files.codec import read_network
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.train import engine
from lib_lora.train.attach import attach
from lib_lora.train.checkpoint import load_state
from lib_lora.train.config import JobConfig
from lib_lora.train.engine import train
from lib_lora.train.frozen import frozen
from lib_lora.train.jobs import Run
from lib_lora.train.plan import Visit
from lib_lora.train.session import prepare

Make = Callable[..., JobConfig]


def checksum(model: DiffusersModel) -> str:
    digest = hashlib.sha256()
    for root in (*model.roots().values(), model.vae):
        for tensor in root.state_dict().values():
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Stop:
    """Asks to cancel after so many steps."""

    def __init__(self, after: int) -> None:
        self.after, self.events = after, list[dict[str, Any]]()

    def __call__(self) -> bool:
        return sum(event["type"] == "step" for event in self.events) >= self.after


def test_a_run_from_start_to_end(make: Make, tiny_model: DiffusersModel, tmp_path: Path) -> None:
    job = make(
        network__type="locon", network__train_text_encoder=True, training__offset_noise=0.1, training__clip=0.5,
        training__steps=2, data__flip=True, output__save_every=1, output__sample_every=1, output__sample_steps=1,
        output__network_folder=str(tmp_path / "networks"),
    )  # fmt: skip
    before, rng = checksum(tiny_model), torch.get_rng_state()
    events: list[dict[str, Any]] = []
    result = train(job, tiny_model, on_event=events.append)
    assert checksum(tiny_model) == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(p.requires_grad or p.grad is not None for p in tiny_model.unet.parameters())
    run = Run.open(result.folder)
    assert run.events() == events
    assert (events[0]["type"], events[0]["folder"]) == ("preparing", str(result.folder))
    events = [event for event in events if event["type"] != "preparing"]
    assert [e["type"] for e in events] == [
        "started", "step", "sample", "saved", "step", "sample", "saved", "finished",
    ]  # fmt: skip
    assert events[1] | {"step": 1, "steps": 2, "epoch": 1, "lr": 1e-3} == events[1]
    assert sorted(p.name for p in run.samples.iterdir()) == ["000001-0.png", "000002-0.png"]
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["state.safetensors", "toy-000001.safetensors"]
    assert (run.job(), run.status().state, run.status().file) == (job, "finished", str(result.file))
    assert result.file == tmp_path / "networks" / "toy.safetensors"
    network = read_network(result.file)
    assert network.parts()["te1"] == 72
    assert network.parts()["unet"] > 192
    assert network.unknown == ()
    assert network.metadata["ss_steps"] == "2"
    assert network.metadata["ss_base_model_version"] == "sd_v1"
    assert network.metadata["modelspec.trigger_phrase"] == "sks"
    assert '"a red sks toy": 1' in network.metadata["ss_tag_frequency"]


def test_equal_seeds_equal_files_and_previews_change_nothing(make: Make, tiny_model: DiffusersModel) -> None:
    first = train(make(training__steps=2), tiny_model).file.read_bytes()
    torch.manual_seed(1234)
    again = train(make(output__sample_every=1, output__sample_steps=1, training__steps=2), tiny_model).file.read_bytes()
    other = train(make(training__seed=8, training__steps=2), tiny_model).file.read_bytes()
    assert again.endswith(first[8 + int.from_bytes(first[:8], "little") :])  # the header has a thumbnail more
    assert first != other


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_resume_is_bit_equal(make: Make, tiny_model: DiffusersModel, name: str) -> None:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    job = make(
        optimizer__name=name, optimizer__schedule="cosine", optimizer__warmup_steps=1, data__flip=True,
        training__epochs=3, training__batch_size=1, training__accumulation=1, data__resolution=128,
    )  # fmt: skip
    whole = train(job, tiny_model)
    assert whole.steps == 6
    stop = Stop(3)
    with pytest.raises(Cancelled, match="step 3 of 6"):
        train(job, tiny_model, on_event=stop.events.append, cancel=stop)
    folder = Path(stop.events[0]["folder"])
    assert Run.open(folder).status().state == "cancelled"
    assert (folder / "checkpoints" / "toy-000003.safetensors").is_file()
    events: list[dict[str, Any]] = []
    resumed = train(job, tiny_model, on_event=events.append, resume=folder)
    (began,) = (event for event in events if event["type"] == "started")
    assert (began["step"], resumed.folder) == (3, folder)
    assert resumed.file.read_bytes() == whole.file.read_bytes()


def test_loss_falls_on_two_pictures(make: Make, tiny_model: DiffusersModel, tmp_path: Path) -> None:
    job = make(training__steps=12, network__rank=8, network__alpha=8.0, optimizer__lr=1e-2, training__min_snr_gamma=0.0)
    network = read_network(train(job, tiny_model).file)
    session = prepare(job, tiny_model, tmp_path)
    visits = [Visit(index, 10_000 + turn, index) for turn in range(4) for index in range(2)]
    with torch.no_grad():
        before = session.losses(visits).mean()
        with attach(tiny_model, network.layers):
            after = session.losses(visits).mean()
    assert after < 0.9 * before


def test_accumulation_equals_a_larger_batch(make: Make, tiny_model: DiffusersModel, tmp_path: Path) -> None:
    gradients = []
    for batch, parts in ((2, 1), (1, 2)):
        job = make(training__batch_size=batch, training__accumulation=parts, data__resolution=128)
        session = prepare(job, tiny_model, tmp_path)
        with frozen(tiny_model, checkpointing=False):
            loss = session.backward(0)
        gradients.append([loss, *(p.grad for p in session.parameters() if p.grad is not None)])
    assert len(gradients[0]) == len(gradients[1]) == 1 + 2 * 192
    for whole, summed in zip(*gradients):
        assert torch.allclose(whole, summed, rtol=1e-4, atol=1e-6)


def test_checkpointing_trains_the_same(make: Make, tiny_model: DiffusersModel) -> None:
    files = [
        train(make(training__checkpointing=on, training__steps=2, output__name="x"), tiny_model).file
        for on in (False, True)
    ]
    plain, recomputed = (read_network(file).layers for file in files)
    for key, layer in plain.items():
        for one, two in zip(layer.parameters(), recomputed[key].parameters()):
            assert torch.allclose(one, two, atol=1e-6), key


def test_random_crop_and_metadata_of_v_prediction(make: Make, tiny_model: DiffusersModel) -> None:
    job = make(data__crop="random", base__prediction="v_prediction", training__steps=1)
    assert read_network(train(job, tiny_model).file).metadata["modelspec.prediction_type"] == "v"


def test_nan_is_told_with_advice_and_the_last_good_state_kept(
    make: Make, tiny_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    honest = DiffusersModel.predict

    def broken(self: DiffusersModel, *args: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return honest(self, *args) * (float("nan") if len(calls) > 2 else 1.0)

    monkeypatch.setattr(DiffusersModel, "predict", broken)
    job = make()
    with pytest.raises(TrainingFailed, match=r"step 3: loss = nan.*optimizer.lr.*after step 2 is saved"):
        train(job, tiny_model)
    run = Run(Path(job.output.folder) / "toy")
    assert run.status().state == "failed"
    monkeypatch.setattr(DiffusersModel, "predict", honest)
    assert train(job, tiny_model, resume=run.folder).file.read_bytes() == train(job, tiny_model).file.read_bytes()


def test_out_of_memory_saves_first_and_hooks_are_gone(
    make: Make, tiny_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    honest = DiffusersModel.predict

    def full(self: DiffusersModel, *args: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return honest(self, *args)

    monkeypatch.setattr(DiffusersModel, "predict", full)
    job = make()
    with pytest.raises(TrainingFailed, match=r"out of memory at step 2.*batch_size.*after step 1 is saved"):
        train(job, tiny_model)
    assert (Path(job.output.folder) / "toy" / "checkpoints" / "state.safetensors").is_file()
    assert not any(module._forward_hooks for module in tiny_model.unet.modules())


def test_errors_before_the_first_step(make: Make, tiny_model: DiffusersModel, tmp_path: Path) -> None:
    with pytest.raises(BadDataset):
        train(make(data__folder=str(tmp_path / "none")), tiny_model)
    assert Run(tmp_path / "runs" / "toy").status().state == "failed"
    with pytest.raises(BadConfig, match="not a run's folder"):
        train(make(), tiny_model, resume=tmp_path)
    done = train(make(training__steps=1), tiny_model)
    with pytest.raises(BadConfig, match="other layers"):
        train(make(network__rank=2), tiny_model, resume=done.folder)


def test_the_file_of_another_is_never_replaced(make: Make, tiny_model: DiffusersModel, tmp_path: Path) -> None:
    shelf = tmp_path / "networks"
    shelf.mkdir()
    theirs = shelf / "toy.safetensors"
    theirs.write_bytes(b"hours of somebody's work")
    job = make(training__steps=1, output__network_folder=str(shelf))
    with pytest.raises(BadConfig, match=r"toy.safetensors' exists already.*another output.name"):
        train(job, tiny_model)
    assert theirs.read_bytes() == b"hours of somebody's work"
    assert not (tmp_path / "runs").exists()
    theirs.unlink()

    done = train(job, tiny_model)
    longer = make(training__steps=2, output__network_folder=str(shelf))
    train(longer, tiny_model, resume=done.folder)
    assert read_network(theirs).metadata["ss_steps"] == "2"  # its own file, made longer

    theirs.write_bytes(b"another tool wrote here since")
    with pytest.raises(BadConfig, match="exists already"):
        train(longer, tiny_model, resume=done.folder)
    theirs.unlink()
    stop = Stop(1)
    with pytest.raises(BadConfig, match="exists already"):  # one that comes up while training goes on

        def appear(event: dict[str, Any]) -> None:
            theirs.write_bytes(b"meanwhile")

        train(make(output__name="toy", training__steps=1, output__network_folder=str(shelf)), tiny_model,
              on_event=appear, cancel=stop)  # fmt: skip
    assert theirs.read_bytes() == b"meanwhile"
    assert (tmp_path / "runs" / "toy-2" / "checkpoints" / "state.safetensors").is_file()


def test_a_damaged_or_foreign_state_is_told_and_the_job_kept(make: Make, tiny_model: DiffusersModel) -> None:
    done = train(make(training__steps=1), tiny_model)
    run = Run.open(done.folder)
    whole, text = run.state.read_bytes(), (run.folder / "job.toml").read_text()
    with pytest.raises(BadConfig, match="other layers"):
        train(make(network__rank=2), tiny_model, resume=run.folder)
    assert (run.folder / "job.toml").read_text() == text
    session = prepare(make(), tiny_model, done.folder)
    assert load_state(run.state, session) == 1
    for damage in (whole[: len(whole) // 2], b"", b"{}" * 100, whole.replace(b'"step":"1"', b'"step":"x"')):
        run.state.write_bytes(damage)
        with pytest.raises(BadFile, match=r"not a run's whole state.*remove that file to start this run anew"):
            load_state(run.state, session)
    run.state.write_bytes(whole.replace(b'"optimizer":"AdamW"', b'"optimizer":"Other"'))
    with pytest.raises(BadConfig, match=r"of the optimizer Other, the job's is AdamW.*optimizer.name"):
        load_state(run.state, session)


def test_cancelled_while_pictures_are_read_and_before_the_first_step(make: Make, tiny_model: DiffusersModel) -> None:
    job, events = make(training__steps=1), list[dict[str, Any]]()
    with pytest.raises(Cancelled, match="while reading pictures"):
        train(job, tiny_model, cancel=lambda: True)
    with pytest.raises(Cancelled, match="step 0 of 1"):
        train(job, tiny_model, on_event=events.append, cancel=lambda: any(e["type"] == "started" for e in events))
    for name in ("toy", "toy-2"):
        folder = Path(job.output.folder) / name
        assert Run.open(folder).status().state == "cancelled"
        assert train(job, tiny_model, resume=folder).steps == 1


def test_a_listener_that_fails_ends_the_run_cleanly(make: Make, tiny_model: DiffusersModel) -> None:
    def broken(event: dict[str, Any]) -> None:
        if event["type"] not in ("preparing", "started"):
            raise BrokenPipeError("nobody reads")

    job = make()
    with pytest.raises(TrainingFailed, match=r"BrokenPipeError.*after step 1 is saved"):
        train(job, tiny_model, on_event=broken)
    run = Run(Path(job.output.folder) / "toy")
    assert (run.status().state, run.status().step) == ("failed", 1)


def test_a_full_disk_is_told_once_nothing_can_be_written(
    make: Make, tiny_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Run.append

    def full(self: Run, event: dict[str, Any]) -> None:
        if event["type"] != "started":
            raise OSError(28, "No space left on device")
        honest(self, event)

    monkeypatch.setattr(Run, "append", full)
    with pytest.raises(TrainingFailed, match=r"No space left on device.*could not be noted"):
        train(make(), tiny_model)


def test_a_gpu_that_died_while_saving_is_told(
    make: Make, tiny_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(*args: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert")

    monkeypatch.setattr("lib_lora.train.outputs.save_state", dead)
    job = make(training__steps=2, output__state_every=1)
    with pytest.raises(TrainingFailed, match=r"device-side assert.*could not be saved"):
        train(job, tiny_model)
    assert Run(Path(job.output.folder) / "toy").status().state == "failed"


def test_an_interrupt_before_the_step_is_counted_keeps_the_older_state(
    make: Make, tiny_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*args: Any) -> None:
        raise KeyboardInterrupt

    def first(self: Any, loss: float) -> None:
        honest(self, loss)
        monkeypatch.setattr(engine._Record, "stepped", press)

    honest = engine._Record.stepped
    monkeypatch.setattr(engine._Record, "stepped", first)
    job = make()
    with pytest.raises(KeyboardInterrupt):
        train(job, tiny_model)
    run = Run(Path(job.output.folder) / "toy")
    assert run.status().state == "failed" and not run.state.exists()  # its layers are of step 2, its count of step 1


def test_tags_in_sample_prompts_say_nothing(
    make: Make, tiny_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def draw(model: Any, request: Any) -> list[Image.Image]:
        drawn.extend(request.prompts)
        return [Image.new("RGB", (8, 8))]

    monkeypatch.setattr("lib_lora.models.sample.sample", draw)
    train(make(training__steps=1, output__sample_every=1, output__sample_prompts=("a toy <lora:toy:1>",)), tiny_model)
    assert drawn == ["a toy"]
    with pytest.raises(BadTag):
        train(make(output__sample_prompts=("a <lora:toy:x>",)), tiny_model)


def test_one_picture_a_larger_batch_and_a_last_short_step(
    make: Make, tiny_model: DiffusersModel, tmp_path: Path
) -> None:
    Image.new("RGB", (1000, 10), "red").save(tmp_path / "strip.png")
    job = make(
        data__folder=str(tmp_path), data__crop="random", training__batch_size=2, training__accumulation=2,
        training__epochs=2, optimizer__warmup_steps=9, base__prediction="v_prediction",
    )  # fmt: skip
    result = train(job, tiny_model)
    assert result.steps == 1 and result.loss is not None
    metadata = read_network(result.file).metadata
    assert (metadata["ss_epoch"], metadata["ss_num_epochs"]) == ("2", "2")
