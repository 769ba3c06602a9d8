"""The thread that reads a library: it finishes, stops, keeps what it found, and nobody waits for it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from lib_lora.files import background as module
from lib_lora.files.background import Background
from lib_lora.files.hashes import file_hashes
from lib_lora.files.library import NetworkLibrary
from lib_lora.files.tensors import write_tensors


def put(path: Path, **metadata: str) -> Path:
    write_tensors(path, {"a": torch.randn(3)}, metadata)
    return path


def test_everything_is_known_after_a_while_and_kept(tmp_path: Path) -> None:
    paths = [put(tmp_path / "n" / f"{i}.safetensors") for i in range(5)]
    stated = put(tmp_path / "n" / "stated.safetensors", sshs_model_hash="12" * 32)
    (tmp_path / "n" / "broken.safetensors").write_bytes(b"x")
    library = NetworkLibrary([tmp_path / "n"], tmp_path / "index.json")
    with Background(library) as background:
        assert background.wait(20)
        for path in paths:
            assert library.facts(library.find(path.stem)).hashes == file_hashes(path)
        facts = library.facts(library.find("stated"))
        assert facts.hash == "12" * 32 and facts.hashes is None
        background.first(library.find("stated"))
        assert background.wait(20)
        assert library.facts(library.find("stated")).hashes == file_hashes(stated)
        assert "broken" in library.facts(library.find("broken")).headline.fault
    again = NetworkLibrary([tmp_path / "n"], tmp_path / "index.json")
    entry = again.find("3")
    known = again.index.known(entry.path, entry.stamp)
    assert known is not None and known.hashes == file_hashes(paths[3])
    assert "lorakit-library" not in [thread.name for thread in threading.enumerate()]


def test_it_stops_in_the_middle_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "x.safetensors")
    hashing, blocks = threading.Event(), []

    def endless(_path: Path, between: object) -> None:
        hashing.set()
        while True:
            blocks.append(1)
            between()  # type: ignore[operator]

    monkeypatch.setattr(module, "file_hashes", endless)
    library = NetworkLibrary([tmp_path])
    background = Background(library)
    background.start()
    background.start()  # a second start changes nothing
    assert hashing.wait(10)
    assert library.find("x").name == "x"  # meanwhile
    assert not background.wait(0.01)
    background.stop()
    count = len(blocks)
    assert count and len(blocks) == count
    background.stop()


def test_a_file_overwritten_while_it_is_hashed_gets_no_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "x.safetensors")

    def overwriting(path: Path, between: object) -> object:
        found = file_hashes(path)
        put(path, new="content")
        return found

    monkeypatch.setattr(module, "file_hashes", overwriting)
    library = NetworkLibrary([tmp_path])
    before = library.find("x")
    with Background(library) as background:
        assert background.wait(20)
    assert library.find("x").stamp != before.stamp
    known = library.index.known(path, before.stamp)
    assert known is not None and known.hashes is None


def test_new_files_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    library = NetworkLibrary([tmp_path])
    with Background(library) as background:
        assert background.wait(20)
        path = put(tmp_path / "x.safetensors")
        wanted = file_hashes(path)
        entry = library.find("x")
        for _ in range(200):
            facts = library.index.known(entry.path, entry.stamp)
            if facts is not None and facts.hashes == wanted:
                break
            threading.Event().wait(0.05)
        else:
            pytest.fail("the new file was not hashed")
