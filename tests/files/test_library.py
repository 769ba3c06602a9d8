"""The library: names, aliases, duplicates, changes on disk, link loops."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lib_lora.errors import NetworkNotFound
from lib_lora.files.library import NetworkLibrary
from lib_lora.files.tensors import write_tensors


def put(path: Path, alias: str = "") -> Path:
    write_tensors(path, {"a": torch.ones(1)}, {"ss_output_name": alias} if alias else {})
    return path


def test_a_file_is_found_by_stem_relative_path_and_alias(tmp_path: Path) -> None:
    path = put(tmp_path / "sub" / "my style, v1.5 猫.safetensors", "trained name")
    library = NetworkLibrary([tmp_path])
    for name in ("my style, v1.5 猫", "sub/my style, v1.5 猫", "sub\\my style, v1.5 猫.safetensors", "trained name"):
        entry = library.find(name)
        assert entry.path == path
        assert (entry.name, entry.relative) == ("my style, v1.5 猫", "sub/my style, v1.5 猫")
        assert (entry.mtime, entry.size) == (path.stat().st_mtime_ns, path.stat().st_size)
    assert library.names() == ["my style, v1.5 猫"]


def test_a_file_name_goes_before_another_files_alias(tmp_path: Path) -> None:
    put(tmp_path / "a.safetensors", "b")
    path = put(tmp_path / "b.safetensors")
    assert NetworkLibrary([tmp_path]).find("b").path == path


def test_duplicates_list_what_to_ask_by(tmp_path: Path) -> None:
    one, two = put(tmp_path / "p" / "x.safetensors"), put(tmp_path / "q" / "x.safetensors")
    library = NetworkLibrary([tmp_path])
    with pytest.raises(NetworkNotFound, match="'x' means 2 files; write one of: p/x, q/x"):
        library.find("x")
    assert (library.find("p/x").path, library.find("q/x").path) == (one, two)
    assert library.names() == ["p/x", "q/x"]


def test_earlier_folders_hide_equal_paths_in_later_ones(tmp_path: Path) -> None:
    path = put(tmp_path / "new" / "x.safetensors")
    put(tmp_path / "old" / "x.safetensors")
    assert NetworkLibrary([tmp_path / "new", tmp_path / "old"]).find("x").path == path


def test_new_removed_and_overwritten_files_are_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    library = NetworkLibrary([folder])
    with pytest.raises(NetworkNotFound, match="no network 'x' among 0 files"):
        library.find("x")
    path = put(folder / "x.safetensors")
    before = library.find("x")
    write_tensors(path, {"a": torch.ones(100)})
    assert library.find("x").size > before.size
    put(folder / "deep" / "y.safetensors")
    assert library.names() == ["x", "y"]
    path.unlink()
    with pytest.raises(NetworkNotFound):
        library.find("x")


def test_an_alias_follows_its_file(tmp_path: Path) -> None:
    put(tmp_path / "x.safetensors", "first")
    library = NetworkLibrary([tmp_path])
    library.find("first")
    put(tmp_path / "x.safetensors", "second time")
    assert library.find("second time").name == "x"


def test_link_loops_dangling_links_and_broken_files_are_survived(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x.safetensors")
    try:
        os.symlink(tmp_path, tmp_path / "a" / "loop", target_is_directory=True)
        os.symlink(tmp_path / "gone", tmp_path / "dangling.safetensors")
    except OSError:
        pytest.skip("no symbolic links here")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    (tmp_path / ".hidden.safetensors").write_bytes(b"")
    (tmp_path / "note.txt").write_text("x")
    library = NetworkLibrary([tmp_path])
    assert library.names() == ["broken", "x"]
    with pytest.raises(NetworkNotFound, match="did you mean x"):
        library.find("xx")


def test_a_file_replaced_by_one_of_equal_size_and_time_is_told_apart(tmp_path: Path) -> None:
    path = put(tmp_path / "x.safetensors", "one")
    library = NetworkLibrary([tmp_path])
    before, stat = library.find("x"), path.stat()
    assert library.find("one") == before
    put(path, "two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as `cp -p` and archives do
    after = library.find("x")
    assert (after.mtime, after.size) == (before.mtime, before.size) and after != before
    assert library.find("two") == after


def test_no_name_is_no_file(tmp_path: Path) -> None:
    put(tmp_path / "x.safetensors")
    with pytest.raises(NetworkNotFound):
        NetworkLibrary([tmp_path]).find(".safetensors")
