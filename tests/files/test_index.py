"""The index: kept on disk, made anew when damaged, never in the way."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest
import torch

from lib_lora.files import index as module
from lib_lora.files.hashes import Hashes
from lib_lora.files.headline import Headline
from lib_lora.files.index import Facts, Index
from lib_lora.files.tensors import write_tensors

STAMP = (1, 2, 3)
HASHES = Hashes("d" * 64, "e" * 64)


def put(path: Path, alias: str = "") -> Path:
    write_tensors(path, {"a": torch.ones(1)}, {"ss_output_name": alias} if alias else {})
    return path


def test_facts_come_back_from_disk_without_a_look_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = put(tmp_path / "猫 ü.safetensors", "ein Name"), tmp_path / "sub" / "index.json"
    index = Index(cache)
    facts = index.read(path, STAMP)
    index.add_hashes(path, STAMP, HASHES)
    index.save()
    monkeypatch.setattr(module, "read_headline", lambda _: pytest.fail("read again"))
    again = Index(cache)
    assert again.read(path, STAMP) == Facts(facts.headline, HASHES)
    assert again.known(path, STAMP) == again.read(path, STAMP)
    assert again.known(path, (1, 2, 4)) is None
    assert facts.headline.alias == "ein Name"


def test_hashes_of_a_file_that_changed_are_not_kept(tmp_path: Path) -> None:
    path = put(tmp_path / "x.safetensors")
    index = Index()
    index.add_hashes(path, STAMP, HASHES)
    assert index.read(path, (9, 2, 3)).hashes is None


def test_which_hash_counts() -> None:
    stated = Headline(stated_hash="ab" * 32)
    assert Facts().hash == Facts().short_hash == ""
    assert Facts(hashes=HASHES).short_hash == "d" * 12
    assert Facts(stated, HASHES).short_hash == "ab" * 6
    assert Facts(stated, HASHES).has_hash("eeee") and not Facts(stated, HASHES).has_hash("f")


def test_files_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    one, two, cache = put(tmp_path / "1.safetensors"), put(tmp_path / "2.safetensors"), tmp_path / "index.json"
    index = Index(cache)
    index.read(one, STAMP), index.read(two, STAMP)
    index.save([one])
    again = Index(cache)
    assert again.known(one, STAMP) is not None and again.known(two, STAMP) is None


GOOD = {"format": 1, "files": {"x": [1, 2, 3, "", "sd1", "lora", 5, "", "", "", ""]}}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "[" * 100_000,
        json.dumps({}),
        json.dumps({"format": 1}),
        json.dumps({"format": 99, "files": GOOD["files"]}),
        json.dumps({"format": 1, "files": []}),
        json.dumps({"format": 1, "files": {"x": 3}}),
        json.dumps({"format": 1, "files": {"x": [1, 2, 3]}}),
        json.dumps({"format": 1, "files": {"x": ["1", *range(10)]}}),
        json.dumps({"format": 1, "files": {"x": [1, 2, 3, None, *GOOD["files"]["x"][4:]]}}),  # type: ignore[index]
        "\udc80",
    ],
)
def test_a_damaged_cache_is_made_anew(tmp_path: Path, content: str) -> None:
    path, cache = put(tmp_path / "x.safetensors"), tmp_path / "index.json"
    cache.write_text(json.dumps(GOOD))
    assert Index(cache).known(Path("x"), (1, 2, 3)) is not None
    cache.write_bytes(content.encode("utf-8", "surrogateescape"))
    index = Index(cache)
    assert index.known(Path("x"), (1, 2, 3)) is None
    index.read(path, STAMP)
    index.save()
    assert Index(cache).known(path, STAMP) is not None


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("x")
    index = Index(tmp_path / "file" / "index.json")
    index.read(put(tmp_path / "x.safetensors"), STAMP)
    with caplog.at_level(logging.WARNING):
        index.save()
    assert "not kept" in caplog.text


def test_an_unchanged_index_is_not_written(tmp_path: Path) -> None:
    path, cache = put(tmp_path / "x.safetensors"), tmp_path / "index.json"
    index = Index(cache)
    index.read(path, STAMP)
    index.save([path])
    cache.unlink()
    index.save([path])
    index.read(path, STAMP)
    index.save()
    assert not cache.exists()


def test_a_look_up_does_not_wait_for_a_file_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "x.safetensors")
    index = Index()
    index.read(path, STAMP)
    reading, go_on = threading.Event(), threading.Event()

    def slow(_: Path) -> Headline:
        reading.set()
        assert go_on.wait(10)
        return Headline()

    monkeypatch.setattr(module, "read_headline", slow)
    thread = threading.Thread(target=index.read, args=(tmp_path / "slow", STAMP))
    thread.start()
    assert reading.wait(10)
    assert index.known(path, STAMP) is not None
    index.add_hashes(path, STAMP, HASHES)
    index.save()
    go_on.set()
    thread.join()
