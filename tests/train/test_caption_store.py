"""Captions on disk: nothing is overwritten without a backup, and one click brings it back."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from PIL import Image

from lib_lora.errors import BadDataset, LoraError
from lib_lora.train import caption_store
from lib_lora.train.caption_store import (
    changes,
    come_back,
    last_operation,
    read_captions,
    require_lasting,
    undo,
    write_captions,
)


def folder_of(tmp_path: Path, **captions: str | None) -> Path:
    for name, text in captions.items():
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        if text is not None:
            (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}


def test_captions_are_read_with_where_they_stand(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a="one\ntwo", b=None, c=None)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "b.png", "text": "table"}))
    assert [(one.picture.name, one.text, one.kept_in) for one in read_captions(folder)] == [
        ("a.png", "one\ntwo", "txt"),
        ("b.png", "table", "table"),
        ("c.png", "", ""),
    ]


def test_writing_backs_up_and_undo_brings_every_byte_back(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a="old", b=None, c="same")
    (folder / "a.txt").write_bytes("狗, 草".encode("gb18030"))
    before = {path.name: path.read_bytes() for path in folder.glob("*.txt")}
    new = {folder / "a.png": "new", folder / "b.png": "made", folder / "c.png": " same \n\n"}
    assert write_captions(folder, new, "Put before: x") == 2
    assert texts(folder) == {"a.txt": "new", "b.txt": "made", "c.txt": "same"}
    assert last_operation(folder) == "Put before: x"
    done = undo(folder)
    assert (done.what, done.files, done.left) == ("Put before: x", 2, ())
    assert {path.name: path.read_bytes() for path in folder.glob("*.txt")} == before
    assert last_operation(folder) == ""
    with pytest.raises(BadDataset, match="take back"):
        undo(folder)


def test_what_was_undone_is_kept_as_well(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a="old")
    write_captions(folder, {folder / "a.png": "hours of work"}, "Edited")
    undo(folder)
    kept = [path.read_text() for path in (folder / ".captions-backup").rglob("*.txt")]
    assert sorted(kept) == ["hours of work", "old"]


def test_operations_are_taken_back_one_by_one(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a="0")
    for number in (1, 2, 3):
        write_captions(folder, {folder / "a.png": str(number)}, f"step {number}")
    for number in (3, 2, 1):
        assert last_operation(folder) == f"step {number}"
        undo(folder)
        assert texts(folder) == {"a.txt": str(number - 1)}


def test_files_changed_since_are_left_alone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a="a", b="b", c="c")
    write_captions(folder, {folder / f"{name}.png": f"new {name}" for name in "abc"}, "all")
    (folder / "a.txt").write_text("mine")
    (folder / "b.txt").unlink()
    done = undo(folder)
    assert done.files == 1 and done.left == ("a.txt", "b.txt")
    assert texts(folder) == {"a.txt": "mine", "c.txt": "c"}


def test_nothing_to_change_makes_no_backup(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a="same")
    assert write_captions(folder, {folder / "a.png": "same"}, "x") == 0
    assert not (folder / ".captions-backup").exists()


def test_sub_folders_and_caption_files_are_written_where_they_are(tmp_path: Path) -> None:
    sub = tmp_path / "10_sks dog"
    sub.mkdir()
    folder_of(sub, a=None)
    (sub / "a.caption").write_text("old")
    picture = sub / "a.png"
    assert [one.picture for one in read_captions(tmp_path)] == [picture]
    write_captions(tmp_path, {picture: "new"}, "x")
    assert (sub / "a.caption").read_text() == "new" and not (sub / "a.txt").exists()
    undo(tmp_path)
    assert (sub / "a.caption").read_text() == "old"


def test_a_table_gets_files_and_stays_as_it_is(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, b=None)
    table = folder / "metadata.jsonl"
    table.write_text(json.dumps({"file_name": "b.png", "text": "table"}))
    before = table.read_bytes()
    write_captions(folder, {folder / "b.png": "edited"}, "x")
    assert [(one.text, one.kept_in) for one in read_captions(folder)] == [("edited", "txt")]
    assert table.read_bytes() == before
    undo(folder)
    assert [(one.text, one.kept_in) for one in read_captions(folder)] == [("table", "table")]


def test_a_file_of_two_pictures_is_not_written_twice(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a="old", b="old")
    Image.new("RGB", (8, 8)).save(folder / "a.jpg")
    with pytest.raises(BadDataset, match=r"a\.txt"):
        write_captions(folder, {folder / "b.png": "n", folder / "a.png": "one", folder / "a.jpg": "two"}, "x")
    assert texts(folder) == {"a.txt": "old", "b.txt": "old"}
    assert write_captions(folder, {folder / "a.png": "one", folder / "a.jpg": "one"}, "x") == 1


def test_too_long_a_caption_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a="old")
    with pytest.raises(BadDataset, match="letters"):
        write_captions(folder, {folder / "a.png": "x" * 20_001}, "x")
    assert texts(folder) == {"a.txt": "old"}


def test_a_write_that_fails_half_way_can_be_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, a="a", b="b")
    real = caption_store.atomic_file

    def full(path: Path):  # type: ignore[no-untyped-def]
        if path.name == "b.txt":
            raise OSError("no space left")
        return real(path)

    monkeypatch.setattr(caption_store, "atomic_file", full)
    with pytest.raises(LoraError, match="no space"):
        write_captions(folder, {folder / "a.png": "1", folder / "b.png": "2"}, "x")
    monkeypatch.undo()
    assert texts(folder) == {"a.txt": "1", "b.txt": "b"}
    assert undo(folder).files == 1
    assert texts(folder) == {"a.txt": "a", "b.txt": "b"}


@pytest.mark.parametrize(
    "files",
    [
        "x",
        [1],
        [{"file": "../out.txt", "was": None, "is": ""}],
        [{"file": "/etc/out.txt", "was": None, "is": ""}],
        [{"file": "a.png", "was": None, "is": ""}],
        [{"file": "a.txt", "was": "../../x", "is": ""}],
    ],
)
def test_a_forged_backup_is_no_backup(tmp_path: Path, files: object) -> None:
    backup = tmp_path / ".captions-backup" / "20260101"
    backup.mkdir(parents=True)
    (backup / "manifest.json").write_text(json.dumps({"what": "x", "files": files}))
    assert last_operation(tmp_path) == ""


def test_changes_are_those_that_differ(tmp_path: Path) -> None:
    captions = read_captions(folder_of(tmp_path, a="1", b="2"))
    assert changes(captions, ["1", "3"]) == [(captions[1], "3")]


def test_the_last_change_is_taken_back_first_when_the_clock_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, a="0")
    old = folder / ".captions-backup" / "20991231-235959-000000"  # as backups were called before
    old.mkdir(parents=True)
    (old / "manifest.json").write_text(json.dumps({"what": "long ago", "files": []}))
    for hour in range(12, 0, -1):

        class Clock:
            @staticmethod
            def now(hour: int = hour) -> datetime:
                return datetime(2026, 11, 21, hour)

        monkeypatch.setattr(caption_store, "datetime", Clock)
        write_captions(folder, {folder / "a.png": str(hour)}, f"at {hour}")
    for hour in range(1, 13):
        assert last_operation(folder) == f"at {hour}"
        undo(folder)
    assert texts(folder) == {"a.txt": "0"} and last_operation(folder) == "long ago"
    write_captions(folder, {folder / "a.png": "new"}, "afterwards")
    assert last_operation(folder) == "afterwards"


def test_captions_that_a_table_brings_back_are_known(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a=None, b="beside", c="alone")
    rows = (json.dumps({"file_name": f"{name}.png", "text": "table"}) for name in "ab")
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    emptied = {folder / f"{name}.png": text for name, text in (("a", " \n"), ("b", ""), ("c", ""))}
    assert come_back(emptied) == [folder / "a.png", folder / "b.png"]
    with pytest.raises(BadDataset, match="of 2 captions nothing would be left, 'a.png' first"):
        require_lasting(emptied)
    require_lasting({folder / "a.png": "words", folder / "c.png": ""})
