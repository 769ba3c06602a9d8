"""The Generate page against a service that draws nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_lora.errors import BadTag
from lib_lora.ui import page
from lib_lora.ui.generate_tab import Drawn, GeneratePage, Picture
from tests.ui.fake_trainer import FakeTrainer


class FakeGenerator:
    """Notes what it was asked to draw."""

    def __init__(self) -> None:
        self.asked: list[Picture] = []

    def generate(self, picture: Picture) -> Drawn:
        self.asked.append(picture)
        if "<lora:>" in picture.prompt:
            raise BadTag("<lora:> names no <network>")
        return Drawn(["picture"], "a & b: 2 of 3 layers applied", complete=False)

    def networks(self) -> list[str]:
        return ["one", "two"]

    def usual_size(self) -> int:
        return 128

    def usual_cfg(self) -> float:
        return 4.0


def test_generate_passes_numbers_and_shows_the_report_escaped() -> None:
    service = FakeGenerator()
    pictures, report = GeneratePage(service).generate("a cat", "", 3, 20, 7.5, 128, 2)
    assert service.asked == [Picture("a cat", "", 3, 20, 7.5, 128, 2)]
    assert pictures == ["picture"]
    assert "a &amp; b:" in report and "lk-bad" in report


def test_bad_tag_is_shown_escaped() -> None:
    pictures, report = GeneratePage(FakeGenerator()).generate("<lora:>", "", 0, 1, 1, 64, 1)
    assert pictures == [] and "&lt;network&gt;" in report and "lk-bad" in report


@pytest.mark.parametrize("numbers", [(0, None, 1, 64, 1), (float("inf"), 1, 1, 64, 1), ("x", 1, 1, 64, 1), (1, 2)])
def test_fields_that_hold_no_number_are_told(numbers: tuple[Any, ...]) -> None:
    service = FakeGenerator()
    pictures, report = GeneratePage(service).generate("a", "", *numbers)
    assert pictures == [] and "lk-bad" in report and service.asked == []


def test_networks_are_looked_up_anew() -> None:
    assert GeneratePage(FakeGenerator()).names()["choices"] in (["one", "two"], [("one", "one"), ("two", "two")])


def component_ids(blocks: Any) -> set[str]:
    return {str(block.elem_id) for block in blocks.blocks.values() if getattr(block, "elem_id", None)}


def test_whole_page_builds(tmp_path: Path) -> None:
    blocks = page.build(FakeGenerator(), FakeTrainer(tmp_path))
    assert {"lorakit_prompt", "lorakit_generate", "lorakit_start"} <= component_ids(blocks)
