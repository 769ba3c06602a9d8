"""The demo: from pictures to a comparison sheet, with the real engine on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lib_lora.errors import BadConfig
from lib_lora.files.codec import read_network
from lib_lora.miniature.subjects import SUBJECTS, photograph, write_photos
from lib_lora.standalone import demo
from lib_lora.standalone.sheet import Row, comparison_sheet


def test_the_demo_trains_draws_and_scores(tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    write_photos(photograph(SUBJECTS["zed"], 2), tmp_path / "pictures", "sks")
    settings = {"training.steps": 2, "data.resolution": 128, "network.rank": 2, "optimizer.lr": 1e-2}
    plan = demo.Plan(tmp_path / "pictures", "toy", ("a sks toy on grass",), settings, size=128, steps=2)
    scores = demo.carry_out(plan, tiny_checkpoint, tmp_path)
    network = read_network(tmp_path / "networks" / "demo.safetensors")
    assert network.parts()["unet"] == 192
    sheet = Image.open(tmp_path / "comparison.png")
    assert sheet.width >= 6 * 128
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    assert set(scores) == {"0", "0.5", "1"}
    told = capsys.readouterr().out
    assert "comparison.png" in told and "<lora:demo:1>" in told and "Subject score" in told


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    first = demo._fresh(tmp_path / "demo")
    (first / "mine.txt").write_text("keep")
    second = demo._fresh(tmp_path / "demo")
    assert second == tmp_path / "demo-2"
    assert (first / "mine.txt").read_text() == "keep"


def test_odd_places_for_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").write_text("keep")
    assert demo._fresh(tmp_path / "demo") == tmp_path / "demo-2"
    with pytest.raises(BadConfig, match="--out"):
        demo._fresh(tmp_path / "demo" / "deeper")
    here = tmp_path / "here"
    here.mkdir()
    (here / "file").write_text("")
    monkeypatch.chdir(here)
    assert demo._fresh(Path(".")) == tmp_path / "here-2"


def test_a_class_without_photos_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert demo.run_demo(None, "dog", None, tmp_path / "out") == 2
    assert "--class 'dog'" in (error := capsys.readouterr().err) and "--photos" in error and error.count("\n") == 1


def test_a_missing_folder_of_photos_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert demo.run_demo(tmp_path / "nowhere", "dog", None, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "nowhere" in error and error.count("\n") == 1


def test_the_sheet_shows_each_picture_in_its_place() -> None:
    colours = {0.0: "red", 1.0: "blue"}
    rows = [Row("a", seed, {s: Image.new("RGB", (64, 64), c) for s, c in colours.items()}) for seed in (1, 2)]
    scores = {"0": 0.1, "1": 0.9}
    sheet = comparison_sheet([Image.new("RGB", (64, 64), "lime")] * 2, rows, (0.0, 1.0), scores)
    seen = {colour: count for count, colour in sheet.getcolors(maxcolors=10**6) or []}
    assert seen[(255, 0, 0)] == seen[(0, 0, 255)] == 2 * 64 * 64
    assert seen[(0, 255, 0)] > 0


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_the_sheet_takes_any_number_of_pictures(count: int) -> None:
    rows = [Row("a", 1, {0.0: Image.new("RGB", (64, 64), "red")})]
    sheet = comparison_sheet([Image.new("RGB", (64, 1), "lime")] * count, rows, (0.0,), {"0": 0.1})
    assert ((0, 255, 0) in {colour for _, colour in sheet.getcolors(maxcolors=10**6) or []}) == (count > 0)
