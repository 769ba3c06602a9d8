"""Every kind of picture file becomes the same plain RGB."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib_lora.errors import BadDataset
from lib_lora.train.images import cover_crop, list_pictures, open_picture, readable, to_pixels


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20), "white")
    picture.paste("red", (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: shown turned right
    picture.save(tmp_path / "a.png", exif=exif)
    upright = open_picture(tmp_path / "a.png")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 2)) == (255, 0, 0)
    assert upright.getpixel((10, 37)) == (255, 255, 255)


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    data = np.zeros((4, 4, 4), np.uint8)
    data[:2] = (255, 0, 0, 255)
    data[2:] = (0, 0, 0, 128)
    Image.fromarray(data, "RGBA").save(tmp_path / "a.png")
    picture = open_picture(tmp_path / "a.png")
    assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert picture.getpixel((0, 3)) == (127, 127, 127)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA", "RGB"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (8, 8), "white").convert(mode).save(path)
    picture = open_picture(path)
    assert picture.mode == "RGB"
    assert min(picture.getpixel((4, 4))) >= 254


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = (np.arange(256, dtype=np.uint32) * 257).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    got = np.asarray(open_picture(tmp_path / "a.png"))[..., 0].astype(int).ravel()
    assert np.abs(got - np.arange(256)).max() <= 1


def test_corrupt_files_are_told_by_name(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "notes.md").write_text("not looked at")
    good, bad = readable(list_pictures(tmp_path))
    assert [path.name for path in good] == ["good.png"]
    assert [item.path.name for item in bad] == ["cut.png", "text.jpg"]
    assert "text.jpg" in bad[1].reason


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="nowhere"):
        list_pictures(tmp_path / "nowhere")


@pytest.mark.parametrize("size", [(100, 50), (50, 100), (30, 20), (64, 64), (201, 67)])
def test_cover_crop_fills_the_square(size: tuple[int, int]) -> None:
    assert cover_crop(Image.new("RGB", size, "red"), 64).size == (64, 64)


def test_cover_crop_goes_where_it_is_told() -> None:
    picture = Image.new("RGB", (128, 64), "red")
    picture.paste("blue", (64, 0, 128, 64))
    assert cover_crop(picture, 64, (0.0, 0.0)).getpixel((32, 32)) == (255, 0, 0)
    assert cover_crop(picture, 64, (1.0, 0.0)).getpixel((32, 32)) == (0, 0, 255)


def test_pixels_and_mirror() -> None:
    data = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(data)
    want = torch.from_numpy(data.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
    assert torch.allclose(to_pixels(picture), want, atol=1e-6)
    assert torch.allclose(to_pixels(picture, flip=True), want.flip(-1), atol=1e-6)


def test_a_long_strip_is_not_scaled_whole() -> None:
    # as a whole it would be 24 GB
    picture = Image.new("RGB", (60_000, 2), "red")
    picture.paste("blue", (30_000, 0, 60_000, 2))
    assert cover_crop(picture, 512, (0.25, 0.5)).getpixel((256, 256)) == (255, 0, 0)
    assert cover_crop(picture, 512, (1.0, 0.5)).getpixel((256, 256)) == (0, 0, 255)
    assert cover_crop(picture.rotate(90, expand=True), 512).size == (512, 512)


@pytest.mark.parametrize("error", [struct.error("required argument is not an integer"), AttributeError("seek")])
def test_whatever_a_decoder_raises_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(path: Path) -> None:  # both were met with damaged files
        raise error

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(BadDataset, match=r"x.png.*replace or remove it"):
        open_picture(tmp_path / "x.png")
