"""Other extensions for the same tag beside ours: LORAKIT_NEIGHBOURS names folders of loractl and lora-block-weight."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

pytestmark = pytest.mark.webui
PROMPT = "a red circle on a blue background"
VECTOR = ",".join(["1"] * 9 + ["0"] * 8)
TAGS = ("<lora:loud:1>", "", "<lora:loud:1:lbw=MIDD>", f"<lora:loud:1:lbw={VECTOR}>", "<lora:loud:1:stop=4>")
SCHEDULES = ("<lora:loud:0@0,1@1>", "<lora:loud:1@0,0@0.5>", "<lora:loud:0.2@2,1@6>")


@pytest.fixture(scope="module")
def folders() -> dict[str, Path]:
    given = os.environ.get("LORAKIT_NEIGHBOURS")
    if not given:
        pytest.skip("LORAKIT_NEIGHBOURS is not set: give folders of sd-webui-loractl and sd-webui-lora-block-weight")
    return {f"neighbour-{Path(folder).name}": Path(folder) for folder in given.split(os.pathsep)}


@pytest.fixture(scope="module")
def theirs(start: Any, builtin: Any, setup_class: Any, folders: Any) -> dict[str, Any]:
    """What they draw without us."""
    with start(setup_class(ours=False, extensions=folders)) as server:
        return {tag: server.picture(f"{PROMPT} {tag}")[0] for tag in (*TAGS, *SCHEDULES)}


@pytest.fixture(scope="module")
def beside(start: Any, theirs: Any, setup_class: Any, folders: Any) -> Iterator[Any]:
    with start(setup_class(extensions=folders)) as server:
        yield server


@pytest.mark.parametrize("tag", [*TAGS, *SCHEDULES])
def test_our_syntax_draws_what_theirs_does(beside: Any, theirs: Any, tag: str) -> None:
    picture, text = beside.picture(f"{PROMPT} {tag}")
    difference = int(numpy.abs(picture - theirs[tag]).max())
    print(f"{tag}: largest difference {difference} / 255")
    assert difference <= 2 and ("LoRA layers" in text) == bool(tag)
    seen = beside.probe()
    assert seen["owner"] == "LoraTag" and seen["bare"]


def test_switched_off_they_work_as_without_us(beside: Any, theirs: Any) -> None:
    beside.picture(f"{PROMPT} {TAGS[0]}")
    beside.options(lorakit_apply=False)
    try:
        pictures = {tag: beside.picture(f"{PROMPT} {tag}")[0] for tag in (*TAGS, *SCHEDULES)}
    finally:
        beside.options(lorakit_apply=True)
    for tag, picture in pictures.items():
        assert numpy.array_equal(picture, theirs[tag]), tag


def test_loractl_disabled_in_its_own_panel_does_not_stumble(beside: Any, theirs: Any) -> None:
    off = {"alwayson_scripts": {"Dynamic Lora Weights": {"args": [False, False]}}}
    for _ in range(2):
        picture, _ = beside.picture(f"{PROMPT} {TAGS[0]}", **off)
        assert numpy.array_equal(picture, theirs[TAGS[0]])


def test_the_log_tells_of_no_exception_and_says_who_reads_the_syntax(beside: Any, theirs: Any) -> None:
    assert beside.faults() == []
    text = beside.log.read_text(encoding="utf-8", errors="replace")
    assert text.count("sd-webui-loractl is loaded as well") == 1
    assert text.count("sd-webui-lora-block-weight is loaded as well") == 1
