"""Hashes in infotext, and what pasting it makes of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lib_lora.host.infotext import add_hashes, read_hashes, restore_names


def _p(**more: Any) -> Any:
    return SimpleNamespace(extra_generation_params={}, **more)


def test_names_are_written_without_the_signs_that_divide_the_list() -> None:
    p = _p()
    add_hashes(p, ["a, b: c", "plain", "none"], {"a, b: c": "1" * 12, "plain": "2" * 12, "none": ""}.__getitem__)
    text = p.extra_generation_params["Lora hashes"]
    assert text == f"a b c: {'1' * 12}, plain: {'2' * 12}"
    assert read_hashes(text) == {"a b c": "1" * 12, "plain": "2" * 12}


def test_the_hires_pass_adds_to_the_first_and_the_next_batch_begins_anew() -> None:
    p = _p(is_hr_pass=False)
    add_hashes(p, ["a"], lambda name: f"h{name}")
    p.is_hr_pass = True
    add_hashes(p, ["b"], lambda name: f"h{name}")
    assert p.extra_generation_params["Lora hashes"] == "a: ha, b: hb"
    p.is_hr_pass = False
    add_hashes(p, [], lambda name: f"h{name}")
    assert "Lora hashes" not in p.extra_generation_params


def test_every_prompt_is_restored_with_names_as_they_are_here() -> None:
    fields = {
        "Lora hashes": "old: 111, a b: 222, gone: 333, same: 444",
        "Prompt": "x <lora:old:1> <lyco:a, b:0.5:lbw=MIDD> <lora:gone:1> <lora:other:1> <hypernet:old:1>",
        "Negative prompt": "<lora:old>",
        "Hires prompt": "<lora:same:1>",
        "Hires negative prompt": "<lora:old:1:0.5>",
        "Steps": "8",
    }
    here = {("111", "old"): "new/old", ("222", "a, b"): "a, b v2", ("444", "same"): "same"}
    asked: list[tuple[str, str]] = []

    def name_of(digest: str, name: str) -> str | None:
        asked.append((digest, name))
        return here.get((digest, name))

    restore_names(fields, name_of)
    assert fields["Prompt"] == (
        "x <lora:new/old:1> <lyco:a, b v2:0.5:lbw=MIDD> <lora:gone:1> <lora:other:1> <hypernet:old:1>"
    )
    assert fields["Negative prompt"] == "<lora:new/old>"
    assert fields["Hires prompt"] == "<lora:same:1>" and fields["Hires negative prompt"] == "<lora:new/old:1:0.5>"
    assert ("333", "gone") in asked and not any(name == "other" for _, name in asked)


def test_text_without_hashes_is_left_alone() -> None:
    fields: dict[str, Any] = {"Prompt": "<lora:a:1>", "Hires prompt": None}
    restore_names(fields, lambda *_: "b")
    assert fields["Prompt"] == "<lora:a:1>"
