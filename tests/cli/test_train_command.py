"""The command `train`: exit codes and what it says."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from lib_lora.__main__ import main
from lib_lora.cli.train import run_to_resume
from lib_lora.train.config import make_job
from lib_lora.train.jobs import Run


@pytest.fixture
def job_file(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    path = tmp_path / "job.toml"
    path.write_text(
        f"[base]\ncheckpoint = {json.dumps(str(tiny_checkpoint))}\n"
        f"[data]\nfolder = {json.dumps(str(folder))}\ntrigger = 'sks'\nresolution = 128\n"
        f"[training]\nsteps = 2\n[output]\nfolder = {json.dumps(str(tmp_path / 'runs'))}\nname = 'red'\n",
        encoding="utf-8",
    )
    return path


def test_trains_and_says_where(job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(job_file), "--set", "training.steps=1", "--set", "rank=2", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    network = job_file.parent / "runs" / "red" / "red.safetensors"
    assert f"network: {network}" in out
    assert network.is_file()
    assert "loss=" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "training.steps=none"], "training.steps = 'none' is not accepted; give a whole number"),
        (["--set", "base.checkpoint=/no/such.safetensors"], "/no/such.safetensors"),
        (["--set", "data.folder=/no/pictures"], "data.folder = '/no/pictures'"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    job_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["train", str(job_file), *arguments, "--json", "--device", "cpu"]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(err) == 1
    assert message in err[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_exits_130(
    job_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = Run.append

    def press(self: Run, event: dict[str, object]) -> None:
        real(self, event)
        if event["type"] == "step":
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Run, "append", press)
    before = signal.getsignal(number)
    assert main(["train", str(job_file), "--device", "cpu"]) == 130
    assert signal.getsignal(number) is before
    assert "stopped at step 1 of 2" in capsys.readouterr().err
    assert (job_file.parent / "runs" / "red" / "checkpoints" / "state.safetensors").is_file()


def test_which_run_is_resumed(tmp_path: Path) -> None:
    job = make_job({"output.folder": str(tmp_path / "runs"), "output.name": "red"})
    assert run_to_resume(tmp_path / "job.toml", job) is None
    run = Run.create(job)
    Run.create(make_job({"output.folder": str(tmp_path / "runs"), "output.name": "blue"}))
    assert run_to_resume(tmp_path / "job.toml", job) == run.folder
    assert run_to_resume(run.folder / "job.toml", job) == run.folder
