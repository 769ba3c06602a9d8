"""Small pictures: made once, anew when the file changes, never from what is no picture."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import pytest
from PIL import Image

from lib_lora.ui import thumbs
from lib_lora.ui.thumbs import LARGE, SMALL, Thumbs


def size_of(url: str) -> tuple[int, int]:
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        return picture.size


def test_made_once_and_again_when_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, made = tmp_path / "a.png", []
    real = thumbs.picture_url
    monkeypatch.setattr(thumbs, "picture_url", lambda p, s: made.append(p) or real(p, s))
    Image.new("RGB", (800, 400), "red").save(path)
    small = Thumbs()
    assert size_of(small.url(path)) == (SMALL, SMALL // 2) and small.url(path) and len(made) == 1
    Image.new("RGB", (400, 800), "blue").save(path)
    os.utime(path, ns=(1, 1))
    assert size_of(small.url(path)) == (SMALL // 2, SMALL) and len(made) == 2
    assert size_of(small.url(path, LARGE)) == (400, 800)


def test_only_the_latest_are_held(tmp_path: Path) -> None:
    small = Thumbs(kept=2)
    for number in range(5):
        path = tmp_path / f"{number}.png"
        Image.new("RGBA", (8, 8), (number, 0, 0, 9)).save(path)
        assert small.url(path)
    assert len(small._made) == 2


@pytest.mark.parametrize("content", [b"", b"<svg onload=alert(1)>", b"\x89PNG\r\n\x1a\n broken"])
def test_no_picture_gives_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert Thumbs().url(path) == "" and Thumbs().url(tmp_path / "gone.png") == "" and Thumbs().url(tmp_path) == ""


def test_a_bomb_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (100, 100)).save(path)
    monkeypatch.setattr(thumbs, "MOST_PIXELS", 9999)
    assert Thumbs().url(path) == ""
