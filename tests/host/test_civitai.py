"""Civitai's record beside a file: trigger words and a description for who wrote none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lib_lora.host import civitai

FULL = {
    "trainedWords": ["sks", " a dog, ", ""],
    "description": "<p>A &lt;b&gt;dog&lt;/b&gt;</p>\n!",
    "baseModel": "SD 1.5",
    "model": {"name": "Dog", "description": "All dogs"},
}


def record(folder: Path, told: Any) -> Path:
    path = folder / "my dog 1.5.civitai.info"
    path.write_text(told if isinstance(told, str) else json.dumps(told), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (FULL, {"activation text": "sks, a dog", "description": "A dog !"}),
        ({**FULL, "description": None}, {"activation text": "sks, a dog", "description": "All dogs"}),
        (
            {"trainedWords": ["a\n b"], "description": "I &lt;3 dogs<br>&"},
            {"activation text": "a b", "description": "I <3 dogs &"},
        ),
        (
            {"description": "x <<b>img src=y onerror='z()' & <img src=y onerror='z()'"},
            {"description": "x < img src=y onerror='z()' &"},
        ),
        ({"trainedWords": [], "model": None}, {}),
        ({}, {}),
    ],
)
def test_what_is_read(tmp_path: Path, told: Any, found: dict[str, str]) -> None:
    assert civitai.read_record(record(tmp_path, told)) == found


@pytest.mark.parametrize(
    "told", ["", "{", "[]", "null", '{"trainedWords": 3}', '{"description": 3}', '{"model": "x"}', "[" * 99_999, "\0"]
)
def test_a_damaged_record_is_none(tmp_path: Path, told: str) -> None:
    assert civitai.read_record(record(tmp_path, told)) == {}
    (tmp_path / "bytes.civitai.info").write_bytes(b"\xff\xfe{")
    assert civitai.read_record(tmp_path / "bytes.civitai.info") == {}
    assert civitai.read_record(tmp_path / "no such file") == {}


@pytest.mark.parametrize(
    ("text", "notes", "activation", "description"),
    [
        (None, {}, "sks, a dog", "A dog !"),
        ("From a .txt", {}, "sks, a dog", "From a .txt"),
        ("mine", {"description": "mine", "activation text": "x"}, "x", "mine"),
        ("", {"description": "", "activation text": ""}, "", ""),  # cleared by the user: stays so
        (None, {"notes": "n"}, "sks, a dog", "A dog !"),
    ],
)
def test_the_users_own_notes_come_first(
    tmp_path: Path, text: str | None, notes: dict[str, str], activation: str, description: str
) -> None:
    record(tmp_path, FULL)
    item: dict[str, Any] = {"filename": str(tmp_path / "my dog 1.5.safetensors"), "description": text}
    civitai.complete({**item, "user_metadata": {}})
    item["user_metadata"] = notes
    civitai.complete(item)
    assert item["user_metadata"]["activation text"] == activation
    assert item["description"] == item["user_metadata"]["description"] == description
    assert item["user_metadata"].get("notes") == notes.get("notes")


def test_without_a_record_nothing_changes(tmp_path: Path) -> None:
    item = {"filename": str(tmp_path / "x.pt"), "description": None, "user_metadata": {}}
    civitai.complete(item)
    assert item == {"filename": str(tmp_path / "x.pt"), "description": None, "user_metadata": {}}


def test_the_built_ins_page_reads_them_and_no_other(tmp_path: Path) -> None:
    asked: list[Any] = []

    def read(item: dict[str, Any], use_cache: bool = True) -> None:
        asked.append(use_cache)
        item["user_metadata"] = {}

    pages = [SimpleNamespace(name=name, read_user_metadata=read) for name in ("checkpoints", "lora")]
    civitai.attach(pages)
    record(tmp_path, FULL)
    items: list[dict[str, Any]] = [{"filename": str(tmp_path / "my dog 1.5.safetensors")} for _ in pages]
    pages[0].read_user_metadata(items[0])
    pages[1].read_user_metadata(items[1], use_cache=False)
    assert items[0]["user_metadata"] == {} and asked == [True, False]
    assert items[1]["user_metadata"] == {"activation text": "sks, a dog", "description": "A dog !"}
