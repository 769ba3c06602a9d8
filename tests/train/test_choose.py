"""Keeping, deleting and describing what a run saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lib_lora.errors import BadConfig, BadFile
from lib_lora.train import choose
from lib_lora.train.config import JobConfig, make_job
from lib_lora.train.jobs import Run
from tests.ui.real_runs import make_run


def opened(root: Path, **settings: object) -> tuple[Run, JobConfig, Path]:
    facts = make_run(root, **settings)  # type: ignore[arg-type]
    run = Run.open(facts.folder)
    return run, run.job(), root / "networks" / "rex.safetensors"


def test_saved_lists_what_is_there_by_step(tmp_path: Path) -> None:
    run, job, _ = opened(tmp_path)
    (run.checkpoints / "rex-000200.safetensors").unlink()
    outside = tmp_path / "elsewhere"
    outside.write_bytes(b"x")
    (run.checkpoints / "rex-000250.safetensors").symlink_to(outside)
    found = choose.saved(run, job, (300, 250, 200, 100, 7))
    assert [one.step for one in found] == [100, 300]
    assert found[0].files == (run.checkpoints / "rex-000100.safetensors",)
    assert found[0].size == len(b"rex at 100") * 1000


@pytest.mark.parametrize(
    ("method", "tag"),
    [("textual_inversion", "xulek zoruz"), ("pivotal_tuning", "<lora:toys:1>"), ("network", "<lora:toys:1>"),
     ("dreambooth", ""), ("hypernetwork", "<hypernet:toys:1>")],
)  # fmt: skip
def test_a_tag_says_every_word_of_several(method: str, tag: str) -> None:
    concepts = [{"folder": word, "trigger": word} for word in ("xulek", "zoruz")]
    assert choose.tag_of(make_job({"method.name": method, "output.name": "toys", "concept": concepts})) == tag


def test_keep_puts_the_step_in_place_and_the_end_aside(tmp_path: Path) -> None:
    run, job, network = opened(tmp_path)
    end, card = network.read_bytes(), network.with_suffix(".json").read_bytes()
    assert choose.kept(run, job) is None
    assert choose.keep(run, job, 200, 400) == network
    assert network.read_bytes() == (run.folder / "rex.safetensors").read_bytes() == b"rex at 200" * 1000
    assert (run.checkpoints / "rex-000400.safetensors").read_bytes() == end
    assert network.with_suffix(".json").read_bytes() == card
    assert choose.kept(run, job) == 200
    assert run.status().state == "finished"  # choosing is no part of training


def test_a_run_that_went_on_since_has_no_choice(tmp_path: Path) -> None:
    run, job, _ = opened(tmp_path)
    choose.keep(run, job, 200, 400)
    (run.folder / "rex.safetensors").write_bytes(b"trained further")
    assert choose.kept(run, job) is None
    (run.folder / choose.CHOICE).write_text("[]")
    assert choose.kept(run, job) is None


def test_keep_again_and_back_to_the_end_loses_nothing(tmp_path: Path) -> None:
    run, job, network = opened(tmp_path)
    end = network.read_bytes()
    for step in (200, 100, 400):
        choose.keep(run, job, step, 400)
    assert network.read_bytes() == end and choose.kept(run, job) == 400
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == [f"rex-{step:06d}.safetensors" for step in (100, 200, 300, 400)]


def test_a_file_of_the_last_step_that_differs_is_not_overwritten(tmp_path: Path) -> None:
    run, job, network = opened(tmp_path)
    end, there = network.read_bytes(), run.checkpoints / "rex-000400.safetensors"
    there.write_bytes(b"saved by hand")
    choose.keep(run, job, 100, 400)
    assert there.read_bytes() == b"saved by hand"
    assert (run.checkpoints / "rex-000400-2.safetensors").read_bytes() == end


def test_keep_refuses_a_file_that_is_not_the_runs(tmp_path: Path) -> None:
    run, job, network = opened(tmp_path)
    network.write_bytes(b"somebody else's")
    with pytest.raises(BadConfig, match="not this run's own"):
        choose.keep(run, job, 100, 400)
    assert network.read_bytes() == b"somebody else's"
    assert not (run.checkpoints / "rex-000400.safetensors").exists()


def test_keep_refuses_what_is_gone(tmp_path: Path) -> None:
    run, job, network = opened(tmp_path)
    before = network.read_bytes()
    with pytest.raises(BadConfig, match="rex-000150"):
        choose.keep(run, job, 150, 400)
    assert network.read_bytes() == before


def test_keep_finishes_a_cancelled_run(tmp_path: Path) -> None:
    run, job, network = opened(tmp_path)
    for path in (network, network.with_suffix(".json"), run.folder / "rex.safetensors"):
        path.unlink()
    assert choose.network_file(run, job) is None
    choose.keep(run, job, 300, 350)
    assert choose.network_file(run, job) == network and network.read_bytes() == b"rex at 300" * 1000
    assert choose.read_card(network)["activation text"] == "sks dog"
    assert not (run.checkpoints / "rex-000350.safetensors").exists()


def test_without_a_target_folder_the_runs_own_file_is_replaced(tmp_path: Path) -> None:
    run, job, _ = opened(tmp_path, output__network_folder="")
    assert choose.keep(run, job, 100, 400) == run.folder / "rex.safetensors"
    assert choose.network_file(run, job) == run.folder / "rex.safetensors"


def test_another_runs_file_of_the_same_name_is_not_this_runs(tmp_path: Path) -> None:
    """The first one was put away and the name used again: its page must not show, or write to, what is there now."""
    run, job, network = opened(tmp_path)
    network.write_bytes(network.read_bytes().replace(b"end", b"END"))  # as long as the first one's
    assert choose.network_file(run, job) == run.folder / "rex.safetensors"
    (run.folder / "rex.safetensors").unlink()  # a run that was cancelled has none
    assert choose.network_file(run, job) is None


def test_delete_takes_only_networks_of_the_run(tmp_path: Path) -> None:
    run, job, network = opened(tmp_path)
    run.state.write_bytes(b"state")
    found = choose.saved(run, job, (100, 300))
    assert choose.delete([path for one in found for path in one.files], run) == 2
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["rex-000200.safetensors", "state.safetensors"]
    for wrong in (network, run.state, run.checkpoints / ".." / "job.toml"):
        with pytest.raises(BadConfig, match="nothing was deleted"):
            choose.delete([run.checkpoints / "rex-000200.safetensors", wrong], run)
    assert network.exists() and run.state.exists() and (run.checkpoints / "rex-000200.safetensors").exists()


@pytest.mark.parametrize("given", ["0.8", "0,8", 0.8, " .8 "])
def test_weight_is_written_and_everything_else_stays(tmp_path: Path, given: object) -> None:
    _, _, network = opened(tmp_path)
    assert choose.set_weight(network, given) == 0.8
    assert json.loads(network.with_suffix(".json").read_text()) == {
        "activation text": "sks dog", "mine": [1], "preferred weight": 0.8,
    }  # fmt: skip


@pytest.mark.parametrize("given", ["", "much", "nan", "inf", "11", None, [1]])
def test_weight_that_is_none_is_refused(tmp_path: Path, given: object) -> None:
    _, _, network = opened(tmp_path)
    before = network.with_suffix(".json").read_bytes()
    with pytest.raises(BadConfig, match="preferred weight"):
        choose.set_weight(network, given)
    assert network.with_suffix(".json").read_bytes() == before


@pytest.mark.parametrize("content", ["{", "[1]", "\ufffd"])
def test_card_that_cannot_be_read_is_told_and_not_overwritten(tmp_path: Path, content: str) -> None:
    _, _, network = opened(tmp_path)
    network.with_suffix(".json").write_text(content, encoding="utf-8")
    with pytest.raises(BadFile, match="rex.json"):
        choose.set_weight(network, 1)
    assert network.with_suffix(".json").read_text(encoding="utf-8") == content


def test_previews_of_before_are_kept_each_once(tmp_path: Path) -> None:
    run, _, network = opened(tmp_path)
    Image.new("RGB", (8, 8), "red").save(network.with_suffix(".png"))
    samples = sorted(run.samples.iterdir())
    for chosen in (0, 0, 2, 0, 2, 4):  # again and again: no copy of a copy
        choose.set_preview(network, samples[chosen])
    colours = {}
    for path in network.parent.glob("*.png"):
        with Image.open(path) as picture:
            colours[path.name] = picture.convert("RGB").getpixel((0, 0))
    assert colours == {
        "rex.previous.png": (255, 0, 0), "rex.previous-2.png": (100, 0, 80), "rex.previous-3.png": (200, 0, 80),
        "rex.png": (44, 0, 80),
    }  # fmt: skip
    assert choose.preview_of(network) == network.with_suffix(".png")


def test_preview_of_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    _, _, network = opened(tmp_path)
    with pytest.raises(BadFile, match="no picture"):
        choose.set_preview(network, network)
    assert choose.preview_of(network) is None


def test_continue_settings_make_a_job(tmp_path: Path) -> None:
    run, job, _ = opened(tmp_path, training__epochs=3)
    settings = {f"{section}.{k}": v for section, table in job.values().items() for k, v in table.items()}
    more = choose.continue_settings(settings, run.checkpoints / "rex-000100.safetensors", " rex-more ", "150")
    new = make_job(more)
    assert new.network.continue_from.endswith("rex-000100.safetensors") and new.output.name == "rex-more"
    assert new.training.steps == 150 and new.training.epochs is None and new.optimizer == job.optimizer
    with pytest.raises(BadConfig, match="steps = 'many'"):
        choose.continue_settings(settings, Path("x"), "y", "many")


def test_every_kind_of_training_continues_or_says_why() -> None:
    from lib_lora.train.fit import refuse_misfits
    from lib_lora.train.methods.registry import METHODS

    for name in METHODS:
        job = make_job({"method.name": name, "network.continue_from": "x.safetensors"})
        if not choose.why_not_continue(job):
            refuse_misfits(job)  # what is offered is not refused
        else:
            assert choose.why_not_continue(job).endswith(".")
    assert {name for name in METHODS if not choose.why_not_continue(make_job({"method.name": name}))} == {
        "network", "lcm", "slider", "image_slider",
    }  # fmt: skip


def test_next_name_is_free() -> None:
    assert choose.next_name("rex", ()) == "rex-more"
    assert choose.next_name("rex", ("rex-more", "rex-more-2")) == "rex-more-3"
    assert choose.next_name("rex-more", ("rex-more",)) == "rex-more-2"
