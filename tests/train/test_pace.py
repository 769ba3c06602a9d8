"""How long a job will take: as the newest run like it did, or scaled from one, or by the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lib_lora.train.config import make_job
from lib_lora.train.jobs import Run
from lib_lora.train.pace import FIXED_S, LOADING_S, cost, pace_of, step_seconds
from lib_lora.train.wizard import Machine

CPU, GPU = Machine("sd1"), Machine("sd1", 12 * 10**9)


def ran(folder: Path, seconds: list[float], **values: Any) -> Run:
    job = make_job({"output.folder": str(folder), **{key.replace("__", "."): value for key, value in values.items()}})
    run = Run.create(job)
    for number, took in enumerate(seconds, 1):
        run.append({"type": "step", "step": number, "steps": 100, "loss": 0.1, "lr": 1e-4, "step_s": took})
    return run


def test_a_run_alike_is_believed(tmp_path: Path) -> None:
    ran(tmp_path, [9.0] + [0.5] * 20, output__name="rex")
    pace = pace_of(make_job({}), GPU, 1.0, tmp_path)
    assert (pace.step_s, pace.run, pace.alike) == (0.5, "rex", True)
    assert pace.seconds(100) == LOADING_S + 50


def test_another_run_is_scaled(tmp_path: Path) -> None:
    ran(tmp_path, [0.52] * 20, output__name="rex")
    pace = pace_of(make_job({"training.batch_size": 4}), GPU, 1.0, tmp_path)
    assert pace.run == "rex" and not pace.alike
    assert pace.step_s == pytest.approx(FIXED_S + 4 * 0.5)


def test_runs_of_other_kinds_say_nothing(tmp_path: Path) -> None:
    ran(tmp_path, [0.5] * 20, data__resolution=1024)
    ran(tmp_path, [0.5] * 20, method__name="slider", method__slider_positive="x")
    ran(tmp_path, [0.5] * 3)  # too short
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "job.toml").write_text("[[[")
    assert pace_of(make_job({}), GPU, 1.0, tmp_path).run == ""
    assert pace_of(make_job({}), GPU, 1.0, tmp_path / "none").run == ""


def test_the_table_knows_what_is_slow(tmp_path: Path) -> None:
    def seconds(machine: Machine, share: float = 1.0, **values: Any) -> float:
        job = make_job({key.replace("__", "."): value for key, value in values.items()})
        return pace_of(job, machine, share, tmp_path).step_s

    usual = seconds(GPU)
    assert seconds(CPU) > 20 * usual
    assert seconds(Machine("sd1", 24 * 10**9)) < usual < seconds(Machine("sd1", 6 * 10**9))
    assert seconds(GPU, data__resolution=1024) > 3.5 * usual
    assert seconds(GPU, training__checkpointing=True) > usual
    assert seconds(GPU, training__batch_size=4) > 3.5 * usual
    assert seconds(GPU, method__name="slider") > 3 * usual
    assert seconds(CPU, 0.03) < 0.1 * seconds(CPU)


def test_cost_counts_pictures() -> None:
    assert cost(make_job({})) == 1
    assert cost(make_job({"training.accumulation": 3, "prior.weight": 1.0})) == 6


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    run = ran(tmp_path, [5.0] * 1000 + [0.25] * 60)
    with (run.folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"type": "note", "message": "x"}) + '\n{"type": "step", "st')
    assert step_seconds(run) == 0.25
