"""Run folders hold together whatever kills the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lib_lora.__main__ import main
from lib_lora.errors import BadConfig
from lib_lora.train.config import JobConfig, dump_job
from lib_lora.train.jobs import Run, list_runs, stamp

Make = Callable[..., JobConfig]


def test_names_are_unique_and_listed_newest_first(make: Make) -> None:
    job = make()
    runs = [Run.create(job) for _ in range(3)]
    for age, run in enumerate(runs):
        os.utime(run.folder / "job.toml", (1000 + age, 1000 + age))
    assert [run.folder.name for run in runs] == ["toy", "toy-2", "toy-3"]
    assert [run.folder for run in list_runs(job.output.folder)] == [run.folder for run in reversed(runs)]
    assert Run.open(runs[0].folder).job() == job
    assert list_runs(Path(job.output.folder) / "none") == []


def test_status_follows_the_events(make: Make) -> None:
    run = Run.create(make())
    assert run.status().state == "new"
    with run.locked():
        run.append(stamp("started", step=0, steps=9))
        run.append(stamp("step", step=1, steps=9, loss=0.5, eta_s=8.0))
        status = run.status()
        assert (status.state, status.step, status.steps, status.loss, status.eta_s) == ("running", 1, 9, 0.5, 8.0)
        with pytest.raises(BadConfig, match="being trained already"), run.locked():
            pass
    assert run.status().state == "interrupted"


def test_a_line_cut_off_by_a_kill_is_left_out_and_mended(make: Make) -> None:
    run = Run.create(make())
    run.append(stamp("started", step=0, steps=9))
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('{"type": "st')
    assert [event["type"] for event in run.events()] == ["started"]
    with run.locked():
        run.append(stamp("step", step=1, steps=9))
    assert [event["type"] for event in run.events()] == ["started", "step"]


def test_a_folder_that_cannot_be_made(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadConfig, match="output.folder"):
        Run.create(make(output__folder=str(tmp_path / "file")))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_kill_and_resume_is_bit_equal(
    make: Make, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also the command line's exit codes, its --json and --resume."""
    job = make(base__checkpoint=str(tiny_checkpoint), training__steps=6, output__state_every=2)
    (tmp_path / "job.toml").write_text(dump_job(job), encoding="utf-8")
    arguments = ["train", str(tmp_path / "job.toml"), "--json", "--device", "cpu"]
    with subprocess.Popen([sys.executable, "-m", "lib_lora", *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if '"step": 3' in line:
                process.send_signal(signal.SIGKILL)
                break
    run = Run.open(Path(job.output.folder) / "toy")
    assert run.status().state == "interrupted"
    capsys.readouterr()
    assert main([*arguments, "--resume"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (events[0]["type"], events[-1]["type"]) == ("preparing", "finished")
    (began,) = (event for event in events if event["type"] == "started")
    assert began["step"] in (2, 4)  # the last state before the kill, which may come a step late
    assert run.status().state == "finished"

    from lib_lora.models.checkpoint import load_checkpoint
    from lib_lora.train.engine import train

    whole = train(job, load_checkpoint(tiny_checkpoint))
    assert whole.file.read_bytes() == (run.folder / "toy.safetensors").read_bytes()
