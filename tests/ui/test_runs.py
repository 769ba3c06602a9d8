"""The list of runs and one in detail, on plain values."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib_lora.errors import BadConfig
from lib_lora.train.config import load_job
from lib_lora.train.jobs import Run
from lib_lora.ui import runs
from lib_lora.ui.live import Request
from lib_lora.ui.runs import Runs
from lib_lora.ui.trainer import TrainStatus
from tests.ui.fake_trainer import FakeTrainer, finished_run
from tests.ui.real_runs import make_run, trainer_with

NASTY = "<script>alert(1)</script>"


class Form:
    """Two fields."""

    def __init__(self) -> None:
        self.inputs = ["a", "b"]
        self.filled: list[Any] = []

    def fill(self, settings: Any) -> list[Any]:
        self.filled.append(settings)
        return ["x", "y"]


def text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_empty_list(tmp_path: Path) -> None:
    assert "There are no runs yet." in Runs(FakeTrainer(tmp_path)).answer(Request())["runs"]


def test_pages_of_twenty_newest_first(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path, known=[finished_run(tmp_path, f"run-{i}", name=f"n{i}") for i in range(45)])
    part = Runs(trainer)

    def names(page: Any) -> list[str]:
        return re.findall(r">(n\d+)</button>", part.answer(Request(view={"page": page}))["runs"])

    assert names(0) == [f"n{i}" for i in range(20)] and names(2) == [f"n{i}" for i in range(40, 45)]
    assert names(99) == names(2) and names(-5) == names(0) and names("x") == names(0)
    assert "page 2 of 3" in text(part.answer(Request(view={"page": 1}))["runs"])


def test_row_says_what_and_when_escaped(tmp_path: Path) -> None:
    run = finished_run(tmp_path, NASTY, name=NASTY, method=NASTY, state="interrupted", step=7, message=NASTY)
    part = Runs(FakeTrainer(tmp_path, known=[run]))
    found = part.answer(Request(view={"open": NASTY}))
    assert "<script>" not in found["runs"] + found["detail"]
    said = text(found["runs"])
    assert "Interrupted 7 of 600 0.0800" in said and "2023-11-1" in said


def test_detail_shows_settings_curves_samples_and_the_job(tmp_path: Path) -> None:
    run = make_run(tmp_path, network__rank=64)
    part = Runs(trainer_with(tmp_path, run))
    html = part.answer(Request(view={"open": run.id}))["detail"]
    said = text(html)
    assert "network.rank 64" in said and "training.batch_size" not in said.partition("The job for another machine")[0]
    assert html.count("<svg") == 2 and html.count("<img") == 8 and "<script>" not in html
    assert "python -m lib_lora train job.toml" in said
    (toml,) = re.findall(r'data-copy="(\[base\][^"]*)"', html)
    import html as entities

    path = tmp_path / "copied.toml"
    path.write_text(entities.unescape(toml))
    assert load_job(path) == Run.open(run.folder).job()


def test_buttons_fit_the_state(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for state, goes_on, forgotten, result in (
        ("finished", False, True, True), ("failed", True, True, True), ("paused", True, True, True),
        ("running", False, False, False), ("queued", False, False, False),
    ):  # fmt: skip
        trainer = trainer_with(tmp_path, replace(run, state=state))
        trainer.now = replace(trainer.now, waiting=(run.id,) if state == "queued" else ())
        part = Runs(trainer)
        html = part.answer(Request(view={"open": run.id}))["detail"]
        on = {label: "disabled" not in facts for facts, label in re.findall(r"<button([^>]*)>([^<]+)</button>", html)}
        assert (on["Continue"], on["Forget"], on["Show its result"]) == (goes_on, forgotten, result), state
    assert "Press again to delete" in html
    without = Runs(trainer_with(tmp_path, replace(run, state="failed", can_resume=False)))
    assert re.search(r"disabled>Continue<", without.answer(Request(view={"open": run.id}))["detail"])


def test_a_run_that_lost_its_queue_can_go_on_or_be_forgotten(tmp_path: Path) -> None:
    """The program was killed between making its folder and writing the queue."""
    run = replace(make_run(tmp_path), state="queued", can_resume=False)
    trainer = trainer_with(tmp_path, run)
    html = Runs(trainer).answer(Request(view={"open": run.id}))["detail"]
    assert not re.search(r"disabled>(Continue|Forget)<", html)
    trainer.now = TrainStatus("running", run.id, "rex", "waiting for the model")
    html = Runs(trainer).answer(Request(view={"open": run.id}))["detail"]
    assert len(re.findall(r"disabled>(?:Continue|Forget)<", html)) == 2


def test_a_folder_that_is_broken_is_told_and_can_be_forgotten(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    trainer = FakeTrainer(tmp_path, known=[run])
    part = Runs(trainer)
    html = part.answer(Request(view={"open": run.id}))["detail"]
    assert "lk-bad" in html and "Forget" in html
    found = part.answer(Request(view={"open": run.id}, do={"do": "forget", "run": run.id}))
    assert "Deleted" in found["runs_told"] and trainer.known == [] and found["detail"] == ""


def test_continue_resumes(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    part = Runs(trainer)
    assert "lk-bad" not in part.act({"do": "continue", "run": "rex-1"}) and trainer.named("resume") == [("rex-1",)]
    trainer.errors["resume"] = BadConfig("<i>; wait")
    assert "&lt;i&gt;" in part.act({"do": "continue", "run": "rex-1"}) and "lk-bad" in part.act({"do": "?"})


def test_repeat_fills_the_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gradio as gr

    run = make_run(tmp_path)
    part, form = Runs(trainer_with(tmp_path, run)), Form()
    assert part.repeat(json.dumps({"do": {"run": run.id}}), form) == ["x", "y"]
    assert form.filled[0]["output.name"] == "rex"
    warned: list[str] = []
    monkeypatch.setattr(gr, "Warning", warned.append)
    assert len(part.repeat(json.dumps({"do": {"run": "gone"}}), form)) == 2 and warned and len(form.filled) == 1


def test_page_builds_without_asking(tmp_path: Path) -> None:
    import gradio as gr

    trainer = FakeTrainer(tmp_path)
    form = Form()
    with gr.Blocks() as blocks:
        form.inputs = [gr.Textbox(), gr.Textbox()]
        runs.add(trainer, form)
    config = json.dumps(blocks.get_config_file(), default=str)
    assert trainer.calls == [] and "lorakit_runs_refresh" in config and "lorakit_repeat_refresh" in config


def test_the_run_in_hand_is_listed_as_it_is_shown_above(tmp_path: Path) -> None:
    """Its folder says "queued" until its pictures are ready."""
    queued = finished_run(tmp_path, "rex-1", state="queued", step=0, steps=400, loss=None)
    trainer = FakeTrainer(tmp_path, known=[queued, finished_run(tmp_path, "max-1", state="queued")])
    trainer.now = TrainStatus("running", "rex-1", "rex", step=7, total=400, loss=0.25, waiting=("max-1",))
    rows = re.findall(r"<tr data-key=.*?</tr>", Runs(trainer).answer(Request())["runs"])
    assert "Training" in text(rows[0]) and "7 of 400 0.2500" in text(rows[0]) and "Waiting" in text(rows[1])


def test_where_others_reach_the_page_folders_are_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path, data__folder=str(tmp_path / "pictures"))
    trainer = trainer_with(tmp_path, run)
    part, view = Runs(trainer), Request(view={"open": "rex"})
    assert part.answer(view)["detail"].count(str(tmp_path)) > 5
    trainer.exposed = True
    detail = part.answer(view)["detail"]
    assert str(tmp_path) not in detail and "networks/rex.safetensors" in detail and ">pictures<" in detail
    (run.folder / "job.toml").write_text("[nonsense]")
    assert str(tmp_path) not in part.answer(view)["detail"]
