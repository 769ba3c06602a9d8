"""Each hash against its definition, and against the reading it must not need twice."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from lib_lora.errors import BadFile
from lib_lora.files.hashes import add_hashes, file_hashes
from lib_lora.files.tensors import write_tensors


def test_hashes_follow_their_definitions(tmp_path: Path) -> None:
    tensors = {f"layer{i}": torch.randn(300, 500) for i in range(3)}  # > 1 MiB, so that the legacy window has data
    metadata = {"ss_seed": "1", "modelspec.title": "x"}
    hashed = add_hashes(metadata, tensors)
    path, bare = tmp_path / "x.safetensors", tmp_path / "bare.safetensors"
    write_tensors(path, tensors, hashed)
    write_tensors(bare, tensors, {"ss_seed": "1"})
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    found = file_hashes(path)
    assert hashed["sshs_model_hash"] == hashlib.sha256(content[start:]).hexdigest() == found.data
    window = bare.read_bytes()[0x100000 : 0x100000 + 0x10000]
    assert len(window) == 0x10000
    assert hashed["sshs_legacy_hash"] == hashlib.sha256(window).hexdigest()[:8]
    assert found.whole == hashlib.sha256(content).hexdigest()
    assert hashed.items() >= metadata.items()


def test_a_small_files_legacy_window_is_empty() -> None:
    hashed = add_hashes({}, {"a": torch.ones(3)})
    assert hashed["sshs_legacy_hash"] == hashlib.sha256(b"").hexdigest()[:8]


def test_a_header_longer_than_a_block_is_left_out_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.randn(1000)}, {"ss_tag_frequency": "x" * 2_500_000})
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert start > 2 << 20
    found = file_hashes(path)
    assert found.data == hashlib.sha256(content[start:]).hexdigest()
    assert found.whole == hashlib.sha256(content).hexdigest()


def test_a_pickled_file_has_one_hash(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(3)}, path)
    assert file_hashes(path).data == file_hashes(path).whole == hashlib.sha256(path.read_bytes()).hexdigest()


def test_hashing_can_be_stopped_after_each_block(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(3 << 18)})  # 3 MiB: four blocks
    blocks: list[int] = []

    def stop() -> None:
        blocks.append(1)
        if len(blocks) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        file_hashes(path, stop)
    assert len(blocks) == 2


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cannot read .*none"):
        file_hashes(tmp_path / "none")
