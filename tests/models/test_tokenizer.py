"""The tokenizer made from open_clip's vocabulary, against open_clip's own tokenizer."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ftfy
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lib_lora.errors import BadFile
from lib_lora.models import tokenizer as room
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.models.text import token_ids
from lib_lora.models.tokenizer import SD1_TEXT_CONFIG, default_clip_folder, load_tokenizer, write_clip_folder
from lib_lora.ports import PLAIN_TEXT


@cache
def reference() -> Any:
    """open_clip's `SimpleTokenizer`, from its file alone: the package would import torchvision."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None and package.origin is not None
    spec = importlib.util.spec_from_file_location("clip_reference", Path(package.origin).with_name("tokenizer.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


def ids_of(model: DiffusersModel, text: str) -> list[int]:
    tower = model.text.towers[0]
    ids: list[int] = token_ids(tower, model.text.windows(tower, [text], PLAIN_TEXT))[0].tolist()
    return ids


def test_known_ids(tiny_model: DiffusersModel) -> None:
    ids = ids_of(tiny_model, "a photo of a cat")
    assert ids[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert len(ids) == 77 and set(ids[7:]) == {49407}


words = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs"), max_codepoint=0x17F), max_size=40)


@given(text=words)
@settings(max_examples=60, deadline=None)
def test_equal_to_open_clips_tokenizer(tiny_model: DiffusersModel, text: str) -> None:
    if version("transformers") >= "5":
        # It no longer mends text with ftfy, which rewrites control characters and a few deprecated letters.
        assume(ftfy.fix_text(text) == text)
    want = reference().encode(text)[:75]
    got = ids_of(tiny_model, text)
    assert got == [49406, *want, *[49407] * (76 - len(want))]


def test_long_texts_are_cut(tiny_model: DiffusersModel) -> None:
    ids = ids_of(tiny_model, "cat " * 200)
    assert ids == [49406, *[2368] * 75, 49407]


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    folder = write_clip_folder(tmp_path / "clip", SD1_TEXT_CONFIG)
    names = {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "config.json"}
    assert {path.name for path in folder.iterdir()} == names
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "vocab.json").write_text("broken")
    write_clip_folder(folder, SD1_TEXT_CONFIG)
    assert len(json.loads((folder / "vocab.json").read_text(encoding="utf-8"))) == 49408
    assert all(path.stat().st_mtime_ns == t for path, t in times.items() if path.name != "vocab.json")
    assert {path.name for path in folder.iterdir()} == names


def test_the_cache_falls_back_where_the_project_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(room, "_cache_roots", lambda: [blocked / "clip", tmp_path / "user"])
    assert default_clip_folder().parent == tmp_path / "user"
    monkeypatch.setattr(room, "_cache_roots", lambda: [blocked / "clip"])
    with pytest.raises(BadFile, match="make one of them writable"):
        default_clip_folder()


def test_a_folder_without_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="vocab.json"):
        load_tokenizer(tmp_path)


def test_without_open_clip_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[[str], None] = lambda name: None  # noqa: E731
    monkeypatch.setattr(room.importlib.util, "find_spec", find)
    with pytest.raises(BadFile, match="pip install open_clip_torch"):
        write_clip_folder(tmp_path / "x", SD1_TEXT_CONFIG)
