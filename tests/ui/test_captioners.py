"""A run of a captioner over a folder: what is written, how it ends, what is kept."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from PIL import Image

from lib_lora.errors import BadConfig, BadDataset
from lib_lora.train.caption_store import last_operation, read_captions, undo
from lib_lora.ui.captioners import CaptionRun
from tests.ui.fake_captioners import FakeCaptioner


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("a", "old, grass"), ("b", None), ("c", None)):
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
        if text:
            (tmp_path / f"{name}.txt").write_text(text)
    return tmp_path


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.txt"))}


def run(folder: Path, captioner: FakeCaptioner, mode: str = "missing", begin: str = "") -> CaptionRun:
    made = CaptionRun()
    made.start(captioner, folder, read_captions(folder), mode, begin)
    made.wait(20)
    return made


def test_only_missing_ones_are_written(folder: Path) -> None:
    now = run(folder, FakeCaptioner()).progress()
    assert (now.state, now.done, now.total, now.message) == ("finished", 2, 2, "")
    assert texts(folder) == {"a": "old, grass", "b": "dog 1, grass", "c": "dog 2, grass"}


def test_words_are_added_once_and_the_beginning_put_before(folder: Path) -> None:
    run(folder, FakeCaptioner(), "append", "sks dog")
    assert texts(folder) == {
        "a": "sks dog, old, grass, dog 1",
        "b": "sks dog, dog 2, grass",
        "c": "sks dog, dog 3, grass",
    }


def test_replacing_is_one_operation_to_undo(folder: Path) -> None:
    before = texts(folder)
    run(folder, FakeCaptioner(), "replace")
    assert texts(folder)["a"] == "dog 1, grass" and last_operation(folder) == "Captions by Fake (tags)"
    assert undo(folder).files == 3
    assert texts(folder) == before


def test_stopping_keeps_what_is_written(folder: Path) -> None:
    captioner, made = FakeCaptioner(gate=threading.Semaphore(0)), CaptionRun()
    made.start(captioner, folder, read_captions(folder), "replace", "")
    with pytest.raises(BadConfig, match="already"):
        made.start(captioner, folder, read_captions(folder), "replace", "")
    made.stop()
    captioner.gate.release()
    made.wait(20)
    assert made.progress().state == "stopped" and made.progress().done <= 1
    assert texts(folder)["a"] in ("dog 1, grass", "old, grass") and not captioner.opened_now
    captioner.gate = None
    made.start(captioner, folder, read_captions(folder), "replace", "")
    made.wait(20)
    assert made.progress().state == "finished"


def test_an_error_is_told_and_what_is_written_stays(folder: Path) -> None:
    captioner = FakeCaptioner(error=BadDataset("out of memory; use a smaller model"))
    now = run(folder, captioner, "replace").progress()
    assert (now.state, now.done) == ("failed", 1) and "smaller model" in now.message
    assert texts(folder) == {"a": "dog 1, grass"} and not captioner.opened_now


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_nobody_expected_ends_the_run_too(folder: Path) -> None:
    now = run(folder, FakeCaptioner(error=RuntimeError("boom")), "replace").progress()
    assert now.state == "failed" and "console" in now.message


def test_broken_pictures_are_left_out_and_named(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"no picture")
    now = run(folder, FakeCaptioner()).progress()
    assert now.state == "finished" and "b.png" in now.message
    assert "b" not in texts(folder) and texts(folder)["c"] == "dog 1, grass"


def test_a_caption_written_meanwhile_is_not_overwritten(folder: Path) -> None:
    captioner, made = FakeCaptioner(gate=threading.Semaphore(0)), CaptionRun()
    made.start(captioner, folder, read_captions(folder), "missing", "")
    (folder / "b.txt").write_text("by hand")
    captioner.gate.release(5)
    made.wait(20)
    assert texts(folder)["b"] == "by hand" and texts(folder)["c"] == "dog 2, grass"


def test_nothing_to_do_and_unknown_ways_are_refused(folder: Path) -> None:
    run(folder, FakeCaptioner())
    with pytest.raises(BadConfig, match="every picture"):
        run(folder, FakeCaptioner())
    with pytest.raises(BadConfig, match="'sideways'"):
        run(folder, FakeCaptioner(), "sideways")
