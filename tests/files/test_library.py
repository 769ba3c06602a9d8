"""The library: names, aliases, duplicates, changes on disk, link loops."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest
import torch

from lib_lora.errors import NetworkNotFound
from lib_lora.files import folders as folders_module
from lib_lora.files.hashes import file_hashes
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


def age(*folders: Path) -> None:
    """Make folders look settled: changed some time ago, as they are on most days."""
    for folder in folders:
        os.utime(folder, (1_500_000_000, 1_500_000_000))


class Calls:
    """Counts what the library asks of the file system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.listed: list[str] = []
        self.looked: list[str] = []
        scandir, stat = os.scandir, os.stat

        def counting_scandir(path: str) -> object:
            self.listed.append(str(path))
            return scandir(path)

        def counting_stat(path: object, **more: object) -> os.stat_result:
            self.looked.append(str(path))
            return stat(path, **more)  # type: ignore[call-overload, no-any-return]

        monkeypatch.setattr(folders_module.os, "scandir", counting_scandir)
        monkeypatch.setattr(folders_module.os, "stat", counting_stat)

    def reset(self) -> None:
        self.listed.clear()
        self.looked.clear()


def test_an_unchanged_library_is_not_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [put(tmp_path / folder / f"{i}.safetensors") for folder in "abc" for i in range(4)]
    age(tmp_path, *(tmp_path / folder for folder in "abc"))
    calls = Calls(monkeypatch)
    library = NetworkLibrary([tmp_path])
    assert len(library.entries()) == 12
    assert len(calls.listed) == 4
    calls.reset()
    assert len(library.entries()) == 12
    assert (len(calls.listed), len(calls.looked)) == (0, 4)  # one look at each folder, none at a file
    put(tmp_path / "b" / "new.safetensors")
    calls.reset()
    assert len(library.entries()) == 13
    assert calls.listed == [str(tmp_path / "b")]
    assert library.find("a/3").path == paths[3]


def test_finding_looks_at_one_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a" / "x.safetensors")
    put(tmp_path / "b" / "y.safetensors")
    age(tmp_path, tmp_path / "a", tmp_path / "b")
    library = NetworkLibrary([tmp_path])
    library.find("x")
    monkeypatch.setattr(library, "_cost", 1.0)  # folders that take long to look at are looked at less often
    calls = Calls(monkeypatch)
    assert library.find("x").path == path
    assert (calls.listed, calls.looked) == ([], [str(path)])


def test_a_list_needs_no_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "x.safetensors", "alias")
    monkeypatch.setattr("lib_lora.files.index.read_headline", lambda _: pytest.fail("read"))
    library = NetworkLibrary([tmp_path])
    assert library.names() == ["x"]
    assert library.find("x").name == "x"


def test_facts_are_kept_between_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = tmp_path / "networks", tmp_path / "index.json"
    path = put(folder / "x.safetensors", "alias")
    NetworkLibrary([folder], cache).find("alias")
    monkeypatch.setattr("lib_lora.files.index.read_headline", lambda _: pytest.fail("read"))
    again = NetworkLibrary([folder], cache)
    assert again.find("alias").path == path
    assert again.facts(again.find("x")).headline.alias == "alias"


def test_all_suffixes_and_which_one_counts(tmp_path: Path) -> None:
    for suffix in (".bin", ".ckpt", ".pt"):
        torch.save({}, tmp_path / f"x{suffix}")
    torch.save({}, tmp_path / "y.v2.BIN")
    library = NetworkLibrary([tmp_path])
    assert library.find("x").path.suffix == ".pt"
    put(tmp_path / "x.safetensors")
    assert library.find("x").path.suffix == ".safetensors"
    for suffix in (".safetensors", ".pt", ".ckpt", ".bin"):
        assert library.find(f"x{suffix}").path.suffix == suffix
    assert library.names() == ["x", "y.v2"]
    assert library.find("y.v2").path.name == "y.v2.BIN"
    put(tmp_path / "z.pt.safetensors")
    assert library.find("z.pt").path.name == "z.pt.safetensors"
    with pytest.raises(NetworkNotFound):
        library.find("z.ckpt")


def test_the_second_half_of_a_cloneofsimo_pair_is_no_network_of_its_own(tmp_path: Path) -> None:
    for name in ("a.pt", "a.text_encoder.pt", "b.text_encoder.pt"):
        torch.save([], tmp_path / name)
    assert NetworkLibrary([tmp_path]).names() == ["a", "b.text_encoder"]


def test_case_and_composition_of_letters_are_a_last_resort(tmp_path: Path) -> None:
    put(tmp_path / "Café.safetensors")
    put(tmp_path / "sub" / "One.safetensors", "Alias")
    library = NetworkLibrary([tmp_path])
    for name in ("café", "CAFÉ", "Cafe\u0301"):
        assert library.find(name).name == "Café"
    for name in ("one", "SUB/ONE", "sub/one.SAFETENSORS", "aLIAS"):
        assert library.find(name).relative == "sub/One"
    if not (tmp_path / "CAFÉ.safetensors").exists():  # a file system that tells case apart
        put(tmp_path / "café.safetensors")
        assert library.find("café").name == "café"
        assert library.find("Café").name == "Café"
        with pytest.raises(NetworkNotFound, match="means 2 files"):
            library.find("CAFÉ")


def test_hidden_folders_are_left_out(tmp_path: Path) -> None:
    put(tmp_path / ".checkpoints" / "x.safetensors")
    path = put(tmp_path / "x.safetensors")
    assert NetworkLibrary([tmp_path]).find("x").path == path


def test_a_library_in_a_hidden_folder_works(tmp_path: Path) -> None:
    put(tmp_path / ".models" / "x.safetensors")
    assert NetworkLibrary([tmp_path / ".models"]).names() == ["x"]


def test_one_folder_by_two_ways_holds_its_files_once(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x.safetensors")
    (tmp_path / "b").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "round.safetensors").symlink_to(tmp_path / "round.safetensors")
    library = NetworkLibrary([tmp_path, tmp_path / "a"])
    assert library.names() == ["x"]
    assert library.find("x").relative == "a/x"


def test_a_folder_that_cannot_be_listed_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "closed" / "x.safetensors")
    put(tmp_path / "open" / "y.safetensors")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(folders_module.os, "scandir", refuse)
    assert NetworkLibrary([tmp_path]).names() == ["y"]
    assert "closed" in caplog.text and "Permission denied" in caplog.text


def test_a_folder_from_the_first_of_january_1970_is_there(tmp_path: Path) -> None:
    put(tmp_path / "x.safetensors")
    os.utime(tmp_path, (0, 0))
    assert NetworkLibrary([tmp_path]).names() == ["x"]


def test_what_is_no_file_is_no_network(tmp_path: Path) -> None:
    put(tmp_path / "folder.safetensors" / "x.safetensors")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
    assert NetworkLibrary([tmp_path]).names() == ["x"]


def test_a_file_overwritten_in_place_tells_its_new_alias(tmp_path: Path) -> None:
    path = put(tmp_path / "x.safetensors", "one")
    other = put(tmp_path / "other" / "y.safetensors", "two")
    library = NetworkLibrary([tmp_path])
    assert library.find("one").path == path
    path.write_bytes(other.read_bytes())
    other.unlink()
    age(tmp_path)
    assert library.find("two").path == path
    with pytest.raises(NetworkNotFound):
        library.find("one")


def test_an_alias_that_its_file_no_longer_has_finds_nothing(tmp_path: Path) -> None:
    path, other = put(tmp_path / "x.safetensors", "one"), put(tmp_path / "other" / "y.safetensors", "two")
    age(tmp_path, tmp_path / "other")
    library = NetworkLibrary([tmp_path])
    assert library.find("one").path == path
    path.write_bytes(other.read_bytes())
    with pytest.raises(NetworkNotFound):
        library.find("one")


def test_a_file_written_within_the_same_tick_of_a_coarse_clock_is_listed(tmp_path: Path) -> None:
    put(tmp_path / "x.safetensors")
    library = NetworkLibrary([tmp_path])
    assert library.names() == ["x"]
    tick = os.stat(tmp_path)
    put(tmp_path / "y.safetensors")
    os.utime(tmp_path, ns=(tick.st_atime_ns, tick.st_mtime_ns))
    assert library.names() == ["x", "y"]


def test_files_are_found_by_a_known_hash(tmp_path: Path) -> None:
    path = put(tmp_path / "x.safetensors")
    library = NetworkLibrary([tmp_path])
    entry = library.find("x")
    hashes = file_hashes(path)
    assert library.by_hash(hashes.data[:12]) == []
    library.index.add_hashes(entry.path, entry.stamp, hashes)
    assert library.by_hash(hashes.data[:12].upper()) == library.by_hash(hashes.whole[:10]) == [entry]
    assert library.by_hash("") == library.by_hash("0" * 12) == []


@pytest.mark.parametrize("name", ["", "/", "\\", "..", "../x", "a\0b", "x" * 10_000, "\ud800", ".pt", "*", "%s{}"])
def test_odd_names_are_not_found(tmp_path: Path, name: str) -> None:
    put(tmp_path / "sub" / "y.safetensors")
    put(tmp_path / "x.safetensors")
    with pytest.raises(NetworkNotFound):
        NetworkLibrary([tmp_path / "sub"]).find(name)


def test_many_threads_while_files_come_and_go(tmp_path: Path) -> None:
    stays = put(tmp_path / "stays" / "stays.safetensors", "its alias")
    library = NetworkLibrary([tmp_path], tmp_path / "index.json")
    until = time.monotonic() + 1.5
    faults: list[BaseException] = []

    def churn(number: int) -> None:
        while time.monotonic() < until:
            put(tmp_path / f"sub{number}" / "comes.safetensors", f"alias {number}").unlink()

    def ask() -> None:
        try:
            while time.monotonic() < until:
                assert library.find("stays").path == library.find("its alias").path == stays
                assert "stays" in library.names()
                with contextlib.suppress(NetworkNotFound):
                    library.find("comes")
        except BaseException as error:  # noqa: BLE001 - told below
            faults.append(error)

    threads = [threading.Thread(target=work) for work in (ask, ask, ask, lambda: churn(1), lambda: churn(2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults
