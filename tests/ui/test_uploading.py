"""Only what the browser sent counts as an upload."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lib_lora.ui.uploading import upload_folder, uploads


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "gradio"
    folder.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    assert upload_folder() == folder
    return folder


def file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_files_of_every_gradio(temporary: Path) -> None:
    path = file(temporary / "hash" / "dog.jpg")
    base64 = SimpleNamespace(name=str(path), orig_name="My dog.jpg")  # gradio 3, sent as text
    sent = SimpleNamespace(name=str(path), orig_name=str(path))  # gradio 3, uploaded
    assert uploads([str(path), sent, base64]) == ([(path, "dog.jpg"), (path, "dog.jpg"), (path, "My dog.jpg")], [])
    assert uploads(str(path)) == ([(path, "dog.jpg")], [])
    assert uploads(None) == ([], []) and uploads([]) == ([], [])


def test_files_from_elsewhere_are_refused(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = file(tmp_path / "private.jpg")
    copied = file(temporary / "hash" / "private.jpg")  # gradio 3 copies whatever is named
    forged = SimpleNamespace(name=str(copied), orig_name=str(private))
    monkeypatch.chdir(tmp_path)
    near = SimpleNamespace(name=str(copied), orig_name="private.jpg")
    through = str(temporary / ".." / "private.jpg")
    link = temporary / "link.jpg"
    link.symlink_to(private)
    assert uploads([str(private), forged, near, through, str(link), str(temporary / "gone.jpg")]) == (
        [],
        ["private.jpg", "private.jpg", "private.jpg", "private.jpg", "link.jpg", "gone.jpg"],
    )
