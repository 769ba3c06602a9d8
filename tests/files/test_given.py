"""Paths as users give them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora.errors import BadConfig
from lib_lora.files.given import given_path


def test_blanks_quotes_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "a b").mkdir()
    found = {
        given_path(text, "x") for text in (f' "{tmp_path}/a b" ', f"'{tmp_path}/a b'", "~/a b", f"{tmp_path}/c/../a b")
    }
    assert found == {(tmp_path / "a b").resolve()}


def test_links_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    try:
        assert given_path(str(tmp_path / "a"), "x").parent == tmp_path.resolve()  # Python 3.13 lets them be
    except BadConfig as error:
        assert "is not a path" in str(error)


@given(st.text())
def test_any_text_is_a_path_or_told(text: str) -> None:
    try:
        assert given_path(text, "data.folder").is_absolute()
    except BadConfig as error:
        assert str(error).startswith(f"data.folder = {text!r} is not a path (")


@pytest.mark.parametrize("text", ["", "  ", "''", "a\0b", "\ud800"])
def test_what_is_no_path(text: str) -> None:
    with pytest.raises(BadConfig, match="give another"):
        given_path(text, "data.folder")
