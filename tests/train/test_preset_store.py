"""Presets of the user's own: saved whole, read back equal, never over another one, and damaged ones left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_lora.errors import BadConfig
from lib_lora.train.config import fields, make_job
from lib_lora.train.preset_store import PERSONAL, PresetStore, checked_name
from lib_lora.train.presets import PRESETS, preset_job


def all_of(values: dict[str, Any]) -> dict[str, Any]:
    job = make_job(values)
    return {item.key: job.get(item.key) for item in fields()}


@pytest.fixture
def store(tmp_path: Path) -> PresetStore:
    return PresetStore(tmp_path / "home" / "presets")


@pytest.mark.parametrize("name", list(PRESETS))
def test_what_is_saved_comes_back(store: PresetStore, name: str) -> None:
    job = preset_job(name, {"optimizer.lr": 3e-5, "network.ranks": ["a=2"], "training.epochs": 4, "data.trigger": "x"})
    values = {item.key: job.get(item.key) for item in fields()}
    assert store.save("mine", values) == "mine"
    loaded = store.load("mine")
    assert loaded == {key: value for key, value in values.items() if key not in PERSONAL}
    assert "data.trigger" not in loaded


def test_none_comes_back_as_none(store: PresetStore) -> None:
    store.save("mine", all_of({}))
    assert store.load("mine")["training.epochs"] is None
    assert make_job({"training.epochs": 3, **store.load("mine")}).training.epochs is None


def test_every_personal_setting_is_one() -> None:
    assert {item.key for item in fields()} >= PERSONAL


def test_names_are_listed_and_deleted(store: PresetStore) -> None:
    assert store.names() == []
    for name in ("beta", "Alpha", "日本 語"):
        store.save(name, {})
    assert store.names() == ["Alpha", "beta", "日本 語"]
    store.delete("beta")
    assert store.names() == ["Alpha", "日本 語"]
    with pytest.raises(BadConfig, match="no preset 'beta'"):
        store.delete("beta")


def test_nothing_is_replaced_unasked(store: PresetStore) -> None:
    store.save("Mine", {"network.rank": 4})
    with pytest.raises(BadConfig, match="'Mine' already"):
        store.save("mine", {"network.rank": 8})
    assert store.load("Mine")["network.rank"] == 4
    assert store.save("mine", {"network.rank": 8}, replace=True) == "Mine"
    assert store.load("Mine")["network.rank"] == 8 and store.names() == ["Mine"]


def test_built_in_names_are_taken(store: PresetStore) -> None:
    with pytest.raises(BadConfig, match="comes with the program"):
        store.save("Subject", {}, replace=True)


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../x", "a/b", "a\\b", "a:b", "x" * 61, "con", "NUL.x", "COM1", "x.", "a\0b", "a\u202eb"],
)
def test_names_that_no_file_has_are_refused(store: PresetStore, name: str) -> None:
    with pytest.raises(BadConfig, match="cannot be a preset's name"):
        store.save(name, {})
    assert not store.folder.exists() or not list(store.folder.iterdir())


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "", ".", "nope"])
def test_only_listed_names_are_read(store: PresetStore, name: str) -> None:
    store.save("mine", {})
    with pytest.raises(BadConfig, match="no preset"):
        store.load(name)


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=70))
def test_a_name_is_a_file_in_the_folder_or_refused(name: str) -> None:
    try:
        found = checked_name(name)
    except BadConfig:
        return
    assert Path("/presets", f"{found}.toml").resolve().parent == Path("/presets") and len(found) <= 60


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\xff\xfe", "cannot be read"),
        (b"rank", "not valid TOML"),
        (b"[network]\nrank = 'x'\n", "network.rank"),
        (b"[network]\ndims = 3\n", "network.dims"),
        (b"[[concept]]\ntrigger = 'a'\n", "concept"),
        (b"[other]\n", "other"),
    ],
)
def test_damaged_ones_are_told_and_left(store: PresetStore, text: bytes, words: str) -> None:
    store.save("good", {"network.rank": 4})
    path = store.folder / "bad.toml"
    path.write_bytes(text)
    with pytest.raises(BadConfig, match=words):
        store.load("bad")
    assert path.read_bytes() == text and store.names() == ["bad", "good"]
    assert store.load("good")["network.rank"] == 4


def test_a_bad_value_is_not_saved(store: PresetStore) -> None:
    with pytest.raises(BadConfig, match="network.rank"):
        store.save("mine", {"network.rank": 0})
    assert store.names() == []
