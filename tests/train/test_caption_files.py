"""Captions in every encoding, and tables of other trainers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lib_lora.train.caption_files import CaptionFiles, decode, lines_of

CHINESE = "一只猫，白色背景"


@pytest.mark.parametrize(
    ("text", "encoding", "guess"),
    [
        ("café, naïve", "utf-8", ""),
        ("café", "utf-8-sig", ""),
        ("café", "utf-16", ""),
        ("café", "utf-32", ""),
        ("a cat on grass", "utf-16-le", "utf-16-le"),
        ("a cat on grass", "utf-16-be", "utf-16-be"),
        ("café, naïve", "cp1252", "cp1252"),
        ("“quoted” – dash", "cp1252", "cp1252"),
        ("100 €, Straße", "cp1252", "cp1252"),
        (CHINESE, "utf-8", ""),
        (CHINESE, "gb18030", "gb18030"),
        (f"1girl, {CHINESE}, smile", "gbk", "gb18030"),
        ("a\x81b", "latin-1", "latin-1"),
    ],
)
def test_encodings(text: str, encoding: str, guess: str) -> None:
    assert decode(text.encode(encoding)) == (text, guess)


def test_nothing_that_bytes_can_be_is_refused() -> None:
    for data in (b"", b"\xff", b"\xff\xfe", b"\0", b"\0\0\0", b"\xef\xbb\xbf", bytes(range(256))):
        assert isinstance(decode(data)[0], str)


def test_guesses_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("café".encode("cp1252"))
    files = CaptionFiles(tmp_path)
    assert files.beside(tmp_path / "a.png") == ("café",)
    assert files.guessed == [(tmp_path / "a.txt", "cp1252")]


def test_text_comes_before_caption(tmp_path: Path) -> None:
    (tmp_path / "a.caption").write_text("from .caption")
    (tmp_path / "b.caption").write_text("from .caption")
    (tmp_path / "b.txt").write_text("from .txt")
    files = CaptionFiles(tmp_path)
    assert files.beside(tmp_path / "a.jpg") == ("from .caption",)
    assert files.beside(tmp_path / "b.jpg") == ("from .txt",)
    assert files.beside(tmp_path / "c.jpg") == ()


def test_lines() -> None:
    assert lines_of("one\r\n\n two \rthree\u2028four\n") == ("one", "two", "three\u2028four")


def test_tables(tmp_path: Path) -> None:
    meta = {
        "/data/pictures/a.png": {"caption": "a cat", "tags": "cat, grass", "train_resolution": [512, 512]},
        "C:\\pictures\\b": {"tags": "dog"},
        "c": {"caption": "old"},
        "d": {"train_resolution": [1, 1]},
    }
    (tmp_path / "meta_lat.json").write_text(json.dumps(meta))
    (tmp_path / "metadata.csv").write_text('file_name,caption\nc.png,"from, csv"\n')
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "./e.png", "prompt": "from jsonl"}\n')
    files = CaptionFiles(tmp_path)
    found = {name: files.in_table(tmp_path / name) for name in ("a.png", "b.jpg", "c.png", "d.png", "e.png")}
    assert found == {
        "a.png": ("a cat, cat, grass",),
        "b.jpg": ("dog",),
        "c.png": ("from, csv",),
        "d.png": (),
        "e.png": ("from jsonl",),
    }
    assert CaptionFiles(tmp_path, use_tables=False).in_table(tmp_path / "a.png") == ()
