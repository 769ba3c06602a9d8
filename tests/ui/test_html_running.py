"""Progress, buttons, queue and log as HTML."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lib_lora.ui.html_parts import button, megabytes, moment, rate
from lib_lora.ui.html_running import WORDS, controls, log, progress, queue
from lib_lora.ui.trainer import TrainStatus
from tests.ui.fake_trainer import finished_run, running

NASTY = "<script>alert('x')</script>\"&"


def enabled(html: str) -> dict[str, bool]:
    return {label: "disabled" not in found for found, label in re.findall(r"<button([^>]*)>([^<]*)</button>", html)}


def test_progress_says_everything() -> None:
    html = progress(replace(running(120, 600), doing="drawing samples"))
    text = " ".join(re.sub(r"<[^>]*>", " ", html).split())
    assert text.startswith("Training rex drawing samples Step 120 of 600 Epoch 10 Time left 4 min 00 s")
    for part in ("Each step 0.5 s", "Loss 0.1000", "Learning rate 1e-4", "Memory 5.0 GB of 12.0 GB"):
        assert part in text
    assert 'aria-valuenow="20"' in html and "width:20.0%" in html
    for fact in ('data-state="running"', 'data-step="120"', 'data-total="600"', 'data-percent="20"', 'data-name="rex"'):
        assert fact in html
    assert 'data-left="4 min 00 s"' in html and "lk-running" in html


@pytest.mark.parametrize("state", list(WORDS))
def test_every_state_is_escaped_and_named(state: str) -> None:
    html = progress(replace(running(), state=state, name=NASTY, id=NASTY, doing=NASTY))
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert WORDS[state] in html


def test_an_unknown_state_is_shown_as_idle() -> None:
    assert 'data-state="idle"' in progress(TrainStatus(state="<b>"))


def test_preparing_shows_no_share() -> None:
    html = progress(TrainStatus("running", "a", "rex", "making pictures ready: 3 of 12"))
    assert "Preparing" in html and "lk-preparing" in html and "making pictures ready: 3 of 12" in html
    assert 'aria-valuenow="0"' in html
    first = progress(TrainStatus("running", "a", "rex", "training"))  # the first step takes its time
    assert "Preparing" not in first and "Training" in first


@pytest.mark.parametrize(
    ("state", "on"),
    [
        ("idle", set()),
        ("running", {"Pause", "Save now", "Cancel"}),
        ("paused", {"Resume", "Cancel"}),
        ("failed", {"Resume"}),
        ("cancelled", {"Resume"}),
        ("interrupted", {"Resume"}),
        ("finished", set()),
    ],
)
def test_buttons_can_be_pressed_where_they_make_sense(state: str, on: set[str]) -> None:
    html = controls(TrainStatus(state, "rex-1", "rex"))
    assert {label for label, can in enabled(html).items() if can} == on
    assert 'data-ask="Press again to cancel"' in html


def test_resume_needs_a_run_or_a_queue_that_waits() -> None:
    assert not enabled(controls(TrainStatus("failed")))["Resume"]
    html = controls(TrainStatus("idle", waiting=("a",)))
    assert enabled(html)["Resume"] and "&quot;id&quot;: &quot;&quot;" in html
    assert not enabled(controls(replace(running(), waiting=("a",))))["Resume"]


def test_queue_ends_cannot_be_moved_further(tmp_path: Path) -> None:
    runs = {"a": finished_run(tmp_path, "a", name=NASTY), "b": finished_run(tmp_path, "b")}
    html = queue(("a", "b", "c"), runs)
    found = re.findall(r"<button([^>]*)>(Up|Down)</button>", html)
    assert [(label, "disabled" not in facts) for facts, label in found] == [
        ("Up", False), ("Down", True), ("Up", True), ("Down", True), ("Up", True), ("Down", False),
    ]  # fmt: skip
    assert "<script>" not in html and queue((), {}) == ""


def test_log_is_escaped_folded_and_short() -> None:
    html = log([NASTY, *(f"line {i}" for i in range(300))])
    assert html.startswith("<details") and "open" not in html.split(">")[0]
    assert html.count("<div>") == 200 and "<script>" not in html and "299" in html
    assert log(()) == ""
    assert "&lt;script&gt;" in log([NASTY])


def test_button_escapes_everything() -> None:
    html = button(NASTY, {"do": NASTY}, ask=NASTY, title=NASTY, data={"x": NASTY})
    assert "<script>" not in html and html.count("&lt;script&gt;") == 5


def test_figures_as_people_write_them() -> None:
    assert [rate(v) for v in (0, 1e-4, 2.5e-5, 0.02, 1.0)] == ["0", "1e-4", "2.5e-5", "0.02", "1"]
    assert [megabytes(v) for v in (300 * 1024, 144 << 20, 5 << 30)] == ["0.3 MB", "144 MB", "5.0 GB"]
    assert moment(float("inf")) == "" and moment(1.7e9).startswith("2023-11-1")
