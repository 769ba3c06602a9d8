"""Every kind of picture file becomes the same plain RGB."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from lib_lora.errors import BadDataset
from lib_lora.train.images import (
    cover_crop,
    list_pictures,
    look,
    open_picture,
    placement,
    sizes,
    stray,
    to_pixels,
)


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
    good, bad = sizes(list_pictures(tmp_path))
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


@pytest.mark.parametrize("shift", [0, 30])
def test_a_cmyk_jpeg_of_adobe_and_one_without_its_mark(tmp_path: Path, shift: int) -> None:
    ink = Image.new("CMYK", (16, 16), (0, 200 - shift, 200 - shift, 0))  # red
    ink.save(tmp_path / "adobe.jpg", quality=100)
    data = (tmp_path / "adobe.jpg").read_bytes()
    mark = data.index(b"\xff\xee")
    assert data[mark + 4 : mark + 9] == b"Adobe"
    # Without the mark the same numbers are not inverted: 0 is no ink
    Image.eval(ink, lambda value: 255 - value).save(tmp_path / "other.jpg", quality=100)
    data = (tmp_path / "other.jpg").read_bytes()
    mark = data.index(b"\xff\xee")
    (tmp_path / "other.jpg").write_bytes(data[:mark] + data[mark + 16 :])
    want = np.array([255, 55 + shift, 55 + shift])
    for name in ("adobe.jpg", "other.jpg"):
        assert np.abs(np.array(open_picture(tmp_path / name).getpixel((8, 8))) - want).max() <= 3, name


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for ending in ("gif", "webp", "png"):
        frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], duration=50)
        red, green, blue = open_picture(tmp_path / f"a.{ending}").getpixel((4, 4))
        assert red > 240 and green < 20 and blue < 20, ending


def test_grey_of_many_depths(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for data in (ramp, ramp * 255, (ramp * (2**31 - 1)).astype(np.int32), (ramp * 65535).astype(np.uint16)):
        Image.fromarray(data).save(tmp_path / "a.tif")
        got = np.asarray(open_picture(tmp_path / "a.tif"), dtype=float)[..., 0]
        assert np.abs(got - ramp * 255).max() <= 1


ENDINGS = ["png", "jpg", "webp", "bmp", "gif", "tif"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_look_at_the_header_finds_size_and_cut_ends(tmp_path: Path, ending: str) -> None:
    data = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(data).save(tmp_path / f"a.{ending}", **({"exif": exif} if ending in ("png", "jpg", "webp") else {}))
    path = tmp_path / f"a.{ending}"
    assert look(path) == open_picture(path).size == ((60, 90) if ending in ("png", "jpg", "webp") else (90, 60))
    whole = path.read_bytes()
    for share in (0.2, 0.6, 0.95):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(BadDataset, match=f"a.{ending}"):
            look(path)


def test_looking_does_not_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ending in ENDINGS[:-1]:
        Image.new("RGB", (32, 16), "red").save(tmp_path / f"a.{ending}")
    decoded: list[str] = []
    load = ImageFile.ImageFile.load

    def spy(self: ImageFile.ImageFile) -> object:
        decoded.append(str(self.format))
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", spy)
    found, bad = sizes(list_pictures(tmp_path))
    assert (set(found.values()), bad) == ({(32, 16)}, [])
    assert decoded == []


def test_a_format_this_pillow_lacks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jxl").write_bytes(b"\xff\n")
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(BadDataset, match=r"a.jxl.*does not know .jxl.*save it as .png"):
        look(tmp_path / "a.jxl")


def test_masks_beside_pictures_are_no_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "a-masklabel.png", ".hidden.png", "notes.txt"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, "png")
    assert [path.name for path in list_pictures(tmp_path)] == ["a.png"]


@pytest.mark.parametrize("size", [(100, 50), (50, 100), (64, 96), (33, 500), (2000, 31)])
@pytest.mark.parametrize("box", [(64, 96), (96, 64), (64, 64)])
def test_rectangles_are_cut_from_where_the_placement_says(size: tuple[int, int], box: tuple[int, int]) -> None:
    place = placement(size, box, (0.3, 0.8))
    assert place.scaled[0] == box[0] or place.scaled[1] == box[1]
    assert 0 <= place.left <= place.scaled[0] - box[0] and 0 <= place.top <= place.scaled[1] - box[1]
    assert abs(place.scaled[0] / size[0] - place.scaled[1] / size[1]) < 1 / min(size)
    ramp = np.tile(np.linspace(0, 255, size[0]), (size[1], 1)).astype(np.uint8)
    cut = cover_crop(Image.fromarray(ramp).convert("RGB"), box, (0.3, 0.8))
    assert cut.size == box
    want = (place.left + box[0] / 2) / place.scaled[0] * 255
    assert abs(cut.getpixel((box[0] // 2, box[1] // 2))[0] - want) < 4 + 255 / size[0]


def test_colours_stray_as_far_as_they_are_told() -> None:
    data = np.random.default_rng(0).integers(40, 200, (16, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(data)
    same = np.asarray(stray(picture, 1.0, (0.0, 0.0, 0.0)), dtype=int)
    assert np.abs(same - data).max() <= 6  # what the way over HSV rounds away
    dark = np.asarray(stray(picture, 0.5, (-1.0, 0.0, 0.0)), dtype=float)
    assert abs(dark.mean() / data.mean() - 0.5) < 0.03
    flat = np.asarray(stray(picture, 0.5, (0.0, -1.0, 0.0)), dtype=float)
    assert abs(flat.std() / data.std() - 0.5) < 0.05
    red = stray(Image.new("RGB", (4, 4), "red"), 1.0, (0.0, 0.0, 1.0)).getpixel((0, 0))
    assert red[0] > 250 and 130 < red[1] < 180 and red[2] < 5  # a tenth of a turn towards yellow
