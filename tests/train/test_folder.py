"""The folder of pictures as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora.errors import BadDataset
from lib_lora.train.folder import check_folder


def test_what_is_typed_names_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.write_text("")
    assert check_folder(f' "{tmp_path}" ') == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert check_folder("~") == tmp_path
    for text, told in (("  ", "empty"), (str(file), "is a file"), (str(tmp_path / "b"), "no folder")):
        with pytest.raises(BadDataset, match=told):
            check_folder(text)


@pytest.mark.parametrize("text", ["~nobody-of-this-name/pictures", "x" * 5000, "a\0b"])
def test_folders_no_system_has_are_told(text: str) -> None:
    with pytest.raises(BadDataset, match="no folder"):
        check_folder(text)
