"""What is done with a finished run, on plain values."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora.errors import BadConfig
from lib_lora.train import choose, compare
from lib_lora.ui import after, looking
from lib_lora.ui.after import After
from lib_lora.ui.live import Request
from lib_lora.ui.running import Running
from lib_lora.ui.trainer import RunFacts, TrainStatus
from tests.ui import fake_trainer
from tests.ui.real_runs import make_run, trainer_with

FORM = {"labels": ["step 100", "final"], "strengths": "0.5, 1", "prompts": "a dog\na cat", "seed": "3", "steps": "4",
        "cfg": "5.5", "more_name": "rex-more", "more_steps": "50", "weight": "0.7"}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunFacts:
    return make_run(tmp_path)


@pytest.fixture
def part(tmp_path: Path, run: RunFacts) -> After:
    trainer = trainer_with(tmp_path, run)
    return After(trainer, Running(trainer))


def do(part: After, name: str, **facts: Any) -> str:
    return part.answer(Request(do={"do": name, "run": "rex", "fields": FORM, **facts}))["after_told"]


def text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def network(run: RunFacts) -> Path:
    return run.files[0]


def test_nothing_before_the_first_run(tmp_path: Path) -> None:
    trainer = fake_trainer.FakeTrainer(tmp_path)
    found = After(trainer, Running(trainer)).answer(Request())
    assert "When a run has finished" in found["after"] and found["grid"] == ""


def test_card_and_saved_networks_are_shown(part: After, run: RunFacts) -> None:
    html = part.answer(Request())["after"]
    said = text(html)
    assert "sks dog &lt;lora:rex:1&gt;" in said and str(network(run)) in said
    for step in (100, 200, 300):
        assert f"step {step}" in said
    assert "is the network now" in said and said.count("Keep this one") == 3
    assert said.count("Continue training from here") == 4
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert 'name="more_name" value="rex-more"' in html and 'name="more_steps" type="number" min="1" value="133"' in html


def test_a_run_in_hand_is_not_shown_but_the_one_before(tmp_path: Path, run: RunFacts) -> None:
    later = replace(make_run(tmp_path, "max"), made=1.8e9)
    trainer = trainer_with(tmp_path, later, run)
    part = After(trainer, Running(trainer))
    assert ">max</b>" in part.answer(Request())["after"]
    trainer.now = TrainStatus("running", "max", "max")
    assert ">rex</b>" in part.answer(Request())["after"]
    trainer.now = TrainStatus("paused", "max", "max")
    assert ">max</b>" in part.answer(Request())["after"]
    assert ">rex</b>" in part.answer(Request(view={"run": "rex"}))["after"]
    assert ">max</b>" in part.answer(Request(view={"run": ["nonsense"]}))["after"]


def test_a_folder_that_is_broken_is_told(part: After, run: RunFacts) -> None:
    (run.folder / "job.toml").write_text("[nonsense]")
    found = part.answer(Request())
    assert "lk-bad" in found["after"] and "nonsense" in found["after"]


def test_compare_draws_the_checked_ones(part: After, run: RunFacts) -> None:
    assert "lk-bad" not in do(part, "compare")
    part.comparer.wait(20)
    found = part.answer(Request())
    assert "The comparison is ready" in found["drawing"] and found["grid"].count("<img") == 8
    said = text(found["grid"])
    assert "a dog" in said and "strength 0.5 strength 1" in said and "step 100" in said and "step 200" not in said
    shown = compare.Grid.open(run.folder, "001")
    assert (shown.seed, shown.steps, shown.cfg) == (3, 4, 5.5)
    trainer: Any = part.trainer
    assert trainer.named("draw")[0][5] == {"lorakit-0": run.saved[100]}  # type: ignore[index]


def test_large_pictures_follow_the_table(part: After, run: RunFacts) -> None:
    do(part, "compare")
    part.comparer.wait(20)
    grid = compare.Grid.open(run.folder, "001")
    cells, look, seen = grid.cells(), {"run": run.id, "grid": "001", "cell": 0}, []
    while True:
        shown = looking.find(part.trainer, look)
        assert shown is not None
        seen.append(cells[look["cell"]])
        if shown.after is None:
            break
        back = looking.find(part.trainer, shown.after)
        assert back is not None and back.before == look
        look = dict(shown.after)
    assert [(one.table, one.row, one.column) for one in seen] == sorted((c.table, c.row, c.column) for c in cells)


def test_progress_is_shown_while_it_draws(part: After) -> None:
    import threading

    gate, drawn, trainer = threading.Event(), threading.Semaphore(0), part.trainer

    def hook(method: str) -> None:
        if method == "draw":
            drawn.release()
            gate.wait(20)

    trainer.hook = hook  # type: ignore[attr-defined]
    do(part, "compare")
    drawn.acquire(timeout=20)
    found = part.answer(Request())
    assert 'data-lk-busy="after"' in found["drawing"] and "picture 0 of 8" in text(found["drawing"])
    assert "is being drawn" in do(part, "compare")
    for name in ("keep", "delete"):
        assert "is being drawn" in do(part, name, step=100, steps=[100])
    assert len(list((part.trainer.run("rex").folder / "checkpoints").iterdir())) == 3
    assert "Stopping" in do(part, "stop")
    gate.set()
    assert part.comparer.wait(20).done == 1
    assert part.answer(Request())["grid"].count("<img") == 1
    assert compare.grids(part.trainer.run("rex").folder) == ["001"]  # the refused one left nothing behind


def test_earlier_comparisons_can_be_looked_at(part: After) -> None:
    for _ in range(2):
        do(part, "compare")
        part.comparer.wait(20)
    for view, name in (({}, "002"), ({"grid": "001"}, "001")):
        assert re.findall(r"compare/(\d+)\.png", part.answer(Request(view=view))["grid"]) == [name]


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("labels", [], "nothing to compare"),
        ("labels", "final", "nothing to compare"),
        ("labels", ["../../x"], "no network of this run"),
        ("strengths", "lots", "'lots'"),
        ("prompts", " ", "nothing to compare"),
        ("seed", "", "seed"),
        ("steps", "1.5", "steps"),
        ("steps", "151", "steps"),
        ("cfg", "0", "cfg"),
    ],
)
def test_a_form_that_is_wrong_draws_nothing(part: After, run: RunFacts, field: str, value: Any, named: str) -> None:
    told = do(part, "compare", fields={**FORM, field: value})
    assert "lk-bad" in told and named in told.replace("&#x27;", "'")
    assert compare.grids(run.folder) == []


def test_compare_while_training_is_refused(part: After, run: RunFacts) -> None:
    part.trainer.now = TrainStatus("running", "other", "other")  # type: ignore[attr-defined]
    assert "lk-bad" in do(part, "compare") and compare.grids(run.folder) == []


def test_keep_and_delete_the_others(part: After, run: RunFacts) -> None:
    assert "lk-bad" not in do(part, "keep", step=200)
    assert network(run).read_bytes() == b"rex at 200" * 1000
    trainer: Any = part.trainer
    assert trainer.named("changed") == [()]
    known = {**(run.saved or {}), 400: run.folder / "checkpoints" / "rex-000400.safetensors"}
    trainer.known = [replace(run, saved=known)]
    html = part.answer(Request())["after"]
    assert text(html).count("is the network now") == 1 and "final" not in text(html)
    (ask,) = re.findall(r'data-ask="(Press again to delete[^"]*)"', html)
    assert ask == "Press again to delete:"
    (names,) = re.findall(r'data-ask-more="([^"]*)"', html)
    assert names.startswith("rex-000100.safetensors") and names.endswith(" kB)") and "000200" not in names
    assert "Deleted 3 files" in text(do(part, "delete", steps=[100, 200, 300, 400]))
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["rex-000200.safetensors"]
    assert network(run).read_bytes() == b"rex at 200" * 1000


@pytest.mark.parametrize("steps", [[99], ["100"], [True], [100, 5], "100", None])
def test_delete_takes_only_steps_of_the_run(part: After, run: RunFacts, steps: Any) -> None:
    do(part, "delete", steps=steps)
    assert len(list((run.folder / "checkpoints").iterdir())) == 3


def test_a_run_that_is_trained_is_left_alone(part: After, run: RunFacts) -> None:
    part.trainer.now = TrainStatus("running", "rex", "rex")  # type: ignore[attr-defined]
    before = network(run).read_bytes()
    for name in ("keep", "delete", "weight", "continue", "compare"):
        assert "lk-bad" in do(part, name, step=100, steps=[100], label="final")
    assert network(run).read_bytes() == before and len(list((run.folder / "checkpoints").iterdir())) == 3


def test_weight_goes_into_card_and_tag(part: After, run: RunFacts) -> None:
    assert "0.7" in do(part, "weight")
    card = choose.read_card(network(run))
    assert card["preferred weight"] == 0.7 and card["mine"] == [1]
    assert "sks dog &lt;lora:rex:0.7&gt;" in part.answer(Request())["after"]
    assert "lk-bad" in do(part, "weight", fields={"weight": "<b>"})


def test_preview_from_a_sample_and_from_a_comparison(part: After, run: RunFacts) -> None:
    act = part.running.act
    assert "lk-bad" not in act({"do": "preview", "run": "rex", "sample": 2})
    with Image.open(network(run).with_suffix(".png")) as picture:
        assert picture.getpixel((0, 0)) == (200, 0, 80)
    do(part, "compare")
    part.comparer.wait(20)
    assert "lk-bad" not in act({"do": "preview", "run": "rex", "grid": "001", "cell": 0})
    with Image.open(network(run).with_suffix(".png")) as picture:
        assert picture.getpixel((0, 0))[1] == 128
    for wrong in ({"sample": 99}, {"grid": "../..", "cell": 0}, {"sample": -1}, {}):
        assert "lk-bad" in act({"do": "preview", "run": "rex", **wrong})


def test_continue_submits_a_run_that_begins_there(part: After, run: RunFacts) -> None:
    told = do(part, "continue", label="step 200")
    assert "rex-more" in told and "lk-bad" not in told
    trainer: Any = part.trainer
    (settings,) = trainer.submitted
    assert settings["network.continue_from"] == str(run.saved[200])  # type: ignore[index]
    assert settings["training.steps"] == 50 and settings["output.name"] == "rex-more"
    assert settings["data.trigger"] == "sks"
    for facts in ({"label": "step 7"}, {"label": "final", "fields": {**FORM, "more_steps": "x"}}):
        assert "lk-bad" in do(part, "continue", **facts)
    trainer.errors["submit"] = BadConfig("no; wait")
    assert "lk-bad" in do(part, "continue", label="final")
    assert len(trainer.submitted) == 1


def of_method(root: Path, name: str, **settings: Any) -> tuple[After, RunFacts]:
    run = make_run(root, method__name=name, **settings)
    trainer = trainer_with(root, run)
    return After(trainer, Running(trainer)), run


def test_checkpoint_is_chosen_elsewhere_and_its_lora_sent_and_compared(tmp_path: Path) -> None:
    part, _ = of_method(tmp_path, "dreambooth", method__as_lora=8)
    html = part.answer(Request())["after"]
    said = text(html)
    assert "Checkpoint rex.safetensors (choose it in the webui&#x27;s checkpoint list)" in said
    assert "Its LoRA in a prompt sks dog &lt;lora:rex-lora:1&gt;" in said
    assert str(tmp_path / "networks" / "rex-lora.safetensors") in said and str(tmp_path / "models") in said
    (sent,) = re.findall(r'data-go="([^"]*)"', html)
    assert json.loads(sent.replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">")) == {
        "tag": "<lora:rex-lora:1>", "words": "sks dog",
    }  # fmt: skip
    assert "lk-bad" not in do(part, "compare")
    part.comparer.wait(20)
    trainer: Any = part.trainer
    used = [next(iter(call[5].values())).name for call in trainer.named("draw")[::4]]
    assert used == ["rex-000100-lora.safetensors", "rex-lora.safetensors"]
    do(part, "weight")
    assert choose.read_card(tmp_path / "networks" / "rex-lora.safetensors")["preferred weight"] == 0.7
    assert not (tmp_path / "models" / "rex.json").exists()
    assert "lk-bad" not in part.running.act({"do": "preview", "run": "rex", "sample": 0})
    for place in ("models/rex.png", "networks/rex-lora.png"):
        assert (tmp_path / place).is_file()


def test_checkpoint_alone_says_what_to_do(tmp_path: Path) -> None:
    part, run = of_method(tmp_path, "dreambooth")
    html = part.answer(Request())["after"]
    said = text(html)
    assert "(choose it in the webui" in said and "In a prompt sks dog" in said and "data-go" not in html
    assert "method.as_lora = 32" in said and 'name="labels"' not in html
    assert "as_lora" in do(part, "compare") and compare.grids(run.folder) == []


def test_embeddings_are_compared_without_strengths(tmp_path: Path) -> None:
    part, run = of_method(tmp_path, "textual_inversion")
    html = part.answer(Request())["after"]
    said = text(html)
    assert "A new run cannot begin from words" in said and "Continue training from here" not in said
    assert 'name="strengths"' not in html and "An embedding has no strength" in said
    assert html.count('name="labels"') == 4
    told = do(part, "compare")
    assert "lk-bad" in told and "does not say" in told and compare.grids(run.folder) == []
    assert "lk-bad" not in do(part, "compare", fields={**FORM, "prompts": "a sks dog\na rex"})
    part.comparer.wait(20)
    trainer: Any = part.trainer
    first, *_, last = trainer.named("draw")
    assert first[0] == ("a sks dog",) and first[5] == {} and set(first[6]) == {"sks", "rex"}
    assert first[6]["rex"].name == "rex-000100.safetensors" and last[6]["sks"].name == "rex.safetensors"
    grid = part.answer(Request())["grid"]
    assert grid.count("<img") == 4 and "strength" not in text(grid) and "step 100 final" in text(grid)
    assert "lk-bad" in do(part, "continue", label="final") and trainer.submitted == []


def test_words_of_a_network_are_compared_with_it(tmp_path: Path) -> None:
    part, _ = of_method(tmp_path, "pivotal_tuning")
    assert 'name="strengths"' in part.answer(Request())["after"]
    assert "lk-bad" not in do(part, "compare", fields={**FORM, "strengths": "0 1", "labels": ["final"]})
    part.comparer.wait(20)
    trainer: Any = part.trainer
    base, _, applied, _ = trainer.named("draw")
    assert base[5:] == ({}, {}) and applied[0] == ("a dog <lora:lorakit-0:1>",)
    assert applied[5]["lorakit-0"].name == "rex.safetensors" and applied[6]["sks"].name == "sks.safetensors"


def test_base_model_is_shown_once_beside_all_networks(part: After) -> None:
    do(part, "compare", fields={**FORM, "strengths": "0 1", "prompts": "a dog"})
    part.comparer.wait(20)
    grid = part.answer(Request())["grid"]
    assert grid.count("<img") == 3 and 'rowspan="2"' in grid and text(grid).count("base model") == 1


def test_boxes_are_checked_over_the_whole_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=2200)
    trainer = trainer_with(tmp_path, run)
    html = After(trainer, Running(trainer)).answer(Request())["after"]
    assert html.count('name="labels"') == 22
    checked = re.findall(r'value="(step \d+|final)" checked', html)
    assert checked == ["step 100", "step 500", "step 900", "step 1400", "step 1800", "final"]
    assert re.findall(r'data-tick="labels" data-tick-to="(\w+)"', html) == ["all", "none"]


def test_where_others_reach_the_page_folders_are_not_shown(part: After, tmp_path: Path) -> None:
    do(part, "compare")
    part.comparer.wait(20)
    part.trainer.exposed = True  # type: ignore[attr-defined]
    found = part.answer(Request())
    assert str(tmp_path) not in "".join(found.values())
    assert "networks/rex.safetensors" in found["after"] and "compare/001.png" in found["grid"]


def test_page_builds_without_asking(tmp_path: Path) -> None:
    import gradio as gr

    trainer = fake_trainer.FakeTrainer(tmp_path)
    with gr.Blocks() as blocks:
        after.add(trainer, Running(trainer))
    assert trainer.calls == []
    assert "lorakit_after_refresh" in json.dumps(blocks.get_config_file(), default=str)


def test_what_a_run_without_a_file_saved_is_not_deleted_as_the_others(part: After, run: RunFacts) -> None:
    for path in (network(run), run.folder / "rex.safetensors"):
        path.unlink()
    assert "Delete the others" not in part.answer(Request())["after"]
    said = text(do(part, "delete", steps=[100, 200, 300]))
    assert "keep one of what it saved" in said
    assert len(list((run.folder / "checkpoints").iterdir())) == 3
