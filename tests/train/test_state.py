"""What a run keeps whatever happens to it: state, events, files; and what it refuses before the first step."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_lora.cli.train import run_to_resume
from lib_lora.errors import BadConfig, BadFile, Cancelled, TrainingFailed
from lib_lora.files.codec import read_network
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.train import engine, outputs
from lib_lora.train.config import JobConfig
from lib_lora.train.engine import train
from lib_lora.train.jobs import Run, stamp, targets
from lib_lora.train.scaler import Scaler
from lib_lora.train.session import Session, prepare

Make = Callable[..., JobConfig]


def stopped_after(count: int, job: JobConfig, model: DiffusersModel) -> Path:
    """The folder of a run that was cancelled after so many steps."""
    events: list[dict[str, Any]] = []
    with pytest.raises(Cancelled, match=f"step {count} of"):
        train(job, model, on_event=events.append, cancel=lambda: sum(e["type"] == "step" for e in events) >= count)
    return Path(next(e["folder"] for e in events if "folder" in e))


def test_keep_last_without_save_every_keeps_the_state_at_a_stop(make: Make, tiny_model: DiffusersModel) -> None:
    folder = stopped_after(1, make(output__keep_last=1), tiny_model)
    assert (folder / "checkpoints" / "state.safetensors").is_file()
    assert (folder / "checkpoints" / "toy-000001.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("lion", {}),
        ("adafactor", {}),
        ("adafactor", {"optimizer__args": ("beta1=0.9",)}),
        ("prodigy", {"optimizer__lr": 1.0, "optimizer__te_lr": 1.0, "optimizer__warmup_steps": 1}),
        ("schedulefree", {"optimizer__warmup_steps": 2}),
        ("sgd", {"optimizer__ema": 0.9}),
        ("custom", {"optimizer__path": "torch.optim.NAdam"}),
    ],
)
def test_every_optimizer_resumes_bit_for_bit_with_previews_between(
    make: Make, tiny_model: DiffusersModel, name: str, more: dict[str, Any]
) -> None:
    for package in {"prodigy": ["prodigyopt"], "schedulefree": ["schedulefree"]}.get(name, []):
        pytest.importorskip(package)
    common = {
        "optimizer__name": name, "network__train_text_encoder": True, "training__te_fraction": 0.5,
        "training__steps": 4, "network__rank": 2, "network__targets": "cross_attention", "output__sample_steps": 1,
        **more,
    }  # fmt: skip
    whole = train(make(**common), tiny_model)
    folder = stopped_after(3, make(**common, output__sample_every=1), tiny_model)
    again = train(make(**common, output__sample_every=1), tiny_model, resume=folder)
    first, second = load_file(str(whole.file)), load_file(str(again.file))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert any(bool(layer.delta(torch.ones(32, 32)).any()) for key, layer in read_network(whole.file).layers.items()
               if key.part == "te1" and "q_proj" in key.path)  # fmt: skip


def test_the_state_is_written_before_the_files(
    make: Make, tiny_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing a large file may run out of memory, and the system then kills without a word."""

    def killed(self: Any, folder: Path, stem: str, step: int) -> None:
        assert Run(folder).state.is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs.Outputs, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        train(make(training__steps=1, output__state_every=0), tiny_model)


def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BadConfig, match=r"output.network_folder = .* cannot be written"):
            targets(make(output__network_folder=str(folder)), None)
    assert targets(make(output__network_folder=str(tmp_path / "new" / "shelf")), None)
    assert not (tmp_path / "new").exists()  # nothing is made where nothing may come


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_told_before_the_first_step(make: Make, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir(mode=0o500)
    with pytest.raises(BadConfig, match="cannot be written"):
        targets(make(output__network_folder=str(shelf)), None)


def test_an_older_copy_of_the_run_is_its_own_after_a_kill_between_file_and_copy(
    make: Make, tiny_model: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = tmp_path / "shelf"
    done = train(make(training__steps=1, output__network_folder=str(shelf)), tiny_model)
    older = done.file.read_bytes()
    longer = make(training__steps=2, output__network_folder=str(shelf))
    honest = outputs.copy_file

    def full(source: Path, target: Path) -> None:
        raise BadFile(f"cannot write {target}: No space left on device; choose another place")

    monkeypatch.setattr(outputs, "copy_file", full)
    with pytest.raises(BadFile, match="No space left"):
        train(longer, tiny_model, resume=done.folder)
    assert done.file.read_bytes() == older  # the copy is of step 1, the run's own file of step 2
    monkeypatch.setattr(outputs, "copy_file", honest)
    assert read_network(train(longer, tiny_model, resume=done.folder).file).metadata["ss_steps"] == "2"


def test_a_line_that_could_not_be_written_whole_costs_no_other(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(make())
    run.append(stamp("started", step=0, steps=9))
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('{"type": "step", "time": 1')  # the disk was full here, and is not any more
    run.append(stamp("failed", step=1, steps=9, message="full"))
    assert [event["type"] for event in run.events()] == ["started", "failed"]
    with (run.folder / "events.jsonl").open("ab") as file:
        file.write(b"\0" * 40 + b"\n[1]\n\xff\n")  # as some file systems leave a file when the power fails
    assert run.status().state == "failed"


def test_what_a_kill_left_half_written_is_cleared_by_the_next_start(make: Make) -> None:
    run = Run.create(make())
    halves = [run.checkpoints / ".state.safetensors.123.tmp", run.folder / ".toy.safetensors.123.tmp"]
    for half in halves:
        half.write_bytes(b"half")
    (run.checkpoints / "toy-000001.safetensors").write_bytes(b"whole")
    with run.locked():
        assert not any(half.exists() for half in halves)
    assert [path.name for path in run.checkpoints.iterdir()] == ["toy-000001.safetensors"]


def test_one_unreadable_run_does_not_keep_others_from_being_resumed(make: Make) -> None:
    job = make()
    run = Run.create(job)
    other = Run.create(make(output__name="older"))
    (other.folder / "job.toml").write_text("[network]\nno_such_setting = 1\n", encoding="utf-8")
    os.utime(other.folder / "job.toml", (4e9, 4e9))
    assert run_to_resume(Path("elsewhere.toml"), job) == run.folder


def test_a_step_left_out_by_the_scaler_is_told_in_json(
    make: Make, tiny_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    honest = DiffusersModel.predict

    def overflowing(self: DiffusersModel, *args: Any) -> torch.Tensor:
        calls.append(1)
        return honest(self, *args) * (float("inf") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(DiffusersModel, "predict", overflowing)
    monkeypatch.setattr("lib_lora.train.session.make_scaler", lambda *args: Scaler(scale=2.0))
    result = train(make(), tiny_model)
    lines = (result.folder / "events.jsonl").read_text().splitlines()

    def strict(name: str) -> None:
        raise AssertionError(f"{name} is no JSON: browsers refuse it")

    losses = [e["loss"] for e in (json.loads(line, parse_constant=strict) for line in lines) if e["type"] == "step"]
    assert losses[1] is None and losses[0] is not None and losses[2] is not None


def test_the_state_of_the_first_version_is_named_as_such(make: Make, tiny_model: DiffusersModel) -> None:
    run = Run.create(make())
    save_file({"layer/unet:x.up": torch.zeros(1)}, str(run.state), {"step": "4", "plain": "{}", "optimizer": "AdamW"})
    with pytest.raises(BadFile, match=r"older version.*remove that file"):
        train(make(), tiny_model, resume=run.folder)


def test_a_step_without_a_gradient_changes_nothing_and_goes_on(make: Make, tiny_model: DiffusersModel) -> None:
    """Every caption dropped: no new word is read, so nothing depends on it."""
    job = make(method__name="textual_inversion", data__trigger="<cat>", data__caption_dropout=1.0, training__steps=2)
    result = train(job, tiny_model)
    assert result.steps == 2 and result.loss is not None and result.loss > 0


def test_two_runs_in_one_process_and_one_alone_are_equal(make: Make, tiny_model: DiffusersModel) -> None:
    files = [train(make(training__steps=1, network__rank_dropout=0.5), tiny_model).file.read_bytes() for _ in range(2)]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", ["network", "dreambooth", "textual_inversion", "hypernetwork", "lcm", "slider"])
def test_nothing_hangs_on_the_model_after_an_error(
    make: Make, tiny_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    modules = [m for root in tiny_model.roots().values() for m in root.modules()]
    before = [(m, dict(m._parameters), m.training, set(m.__dict__)) for m in modules]
    grads = [p.requires_grad for m in modules for p in m._parameters.values() if p is not None]
    calls: list[int] = []
    honest = type(tiny_model.unet.mid_block).forward

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise ValueError("in the middle of a forward pass")
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(type(tiny_model.unet.mid_block), "forward", broken)
    job = make(
        method__name=name, data__trigger="<cat>", data__class_word="cat", method__slider_positive="old",
        method__slider_steps=2, training__steps=5, data__resolution=128, output__name="x",
    )  # fmt: skip
    with pytest.raises(TrainingFailed, match="in the middle of a forward pass"):
        train(job, tiny_model)
    for module, parameters, training, names in before:
        assert not (module._forward_hooks or module._forward_pre_hooks)
        assert all(module._parameters[n] is p for n, p in parameters.items())
        assert module.training == training and set(module.__dict__) == names
    assert grads == [p.requires_grad for m in modules for p in m._parameters.values() if p is not None]


def test_continue_from_begins_with_the_files_layers(make: Make, tiny_model: DiffusersModel, tmp_path: Path) -> None:
    first = train(make(training__steps=2), tiny_model).file
    kept = shutil.copy(first, tmp_path / "first.safetensors")
    session: Session = prepare(make(network__continue_from=str(kept)), tiny_model, tmp_path)
    network = read_network(Path(kept))
    (learner,) = session.learners
    for key, layer in learner.layers.items():  # type: ignore[attr-defined]
        assert torch.equal(layer.up, network.layers[key].up)  # type: ignore[attr-defined]


def test_engine_has_no_state_of_its_own() -> None:
    assert not [name for name, value in vars(engine).items() if isinstance(value, (list, dict)) and name[0] != "_"]
