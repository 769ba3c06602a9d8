"""Colours of pictures that say which they mean: against the matrices of the standards."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from lib_lora.train.colour import to_srgb
from lib_lora.train.images import open_layers, open_picture

# Columns: red, green, blue in XYZ of white D50 (Display P3: SMPTE EG 432-1 primaries; sRGB: IEC 61966-2-1), Bradford
P3 = np.array([[0.515102, 0.291965, 0.157153], [0.241182, 0.692236, 0.066582], [-0.001050, 0.041882, 0.784378]])
SRGB = np.array([[0.436066, 0.385147, 0.143066], [0.222488, 0.716873, 0.060608], [0.013916, 0.097076, 0.714096]])
WHITE = (0.964203, 1.0, 0.824905)


def matrix_profile(columns: np.ndarray, gamma: float) -> bytes:
    """A small ICC profile (version 2) of three primaries and one gamma."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    text = b"text\0\0\0\0test\0"
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 78
    tags = {b"desc": description, b"cprt": text, b"wtpt": b"XYZ \0\0\0\0" + fixed(*WHITE)}
    tags |= {name + b"XYZ": b"XYZ \0\0\0\0" + fixed(*column) for name, column in zip((b"r", b"g", b"b"), columns.T)}
    tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"test", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + fixed(*WHITE) + b"\0" * 48
    return head[:128] + struct.pack(">I", len(tags)) + table + body


def expected(colour: tuple[int, int, int], gamma: float) -> np.ndarray:
    linear = (np.array(colour) / 255) ** gamma
    light = np.clip(np.linalg.inv(SRGB) @ P3 @ linear, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 120, 60), (90, 160, 90), (60, 70, 190)])
@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_a_wide_gamut_is_read_as_the_colours_meant(colour: tuple[int, int, int], ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{ending}"
    Image.new("RGB", (8, 8), colour).save(file, icc_profile=matrix_profile(P3, 2.2))
    assert np.abs(np.array(open_picture(file))[3, 3] - expected(colour, 2.2)).max() <= 1.5


def test_srgb_and_no_profile_change_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, more in (("plain", {}), ("srgb", {"icc_profile": srgb})):
        Image.fromarray(noise).save(tmp_path / f"{name}.png", **more)
        assert (np.array(open_picture(tmp_path / f"{name}.png")) == noise).all()


def test_transparency_stays(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (8, 8), (200, 120, 60, 255))
    picture.putpixel((0, 0), (200, 120, 60, 0))
    picture.save(tmp_path / "a.png", icc_profile=matrix_profile(P3, 2.2))
    pixels, alpha = open_layers(tmp_path / "a.png")
    assert alpha is not None and alpha.getpixel((0, 0)) == 0 and alpha.getpixel((3, 3)) == 255
    assert pixels.getpixel((0, 0)) == (255, 255, 255)
    assert np.abs(np.array(pixels)[3, 3] - expected((200, 120, 60), 2.2)).max() <= 1.5


@pytest.mark.parametrize("profile", [b"", b"nonsense", matrix_profile(P3, 2.2)[:200]])
def test_a_broken_profile_costs_nothing(profile: bytes) -> None:
    picture = Image.new("RGB", (4, 4), (10, 20, 30))
    picture.info["icc_profile"] = profile
    assert to_srgb(picture).getpixel((0, 0)) == (10, 20, 30)


def test_a_profile_of_another_kind_of_picture_is_left_alone() -> None:
    picture = Image.new("L", (4, 4), 99)
    picture.info["icc_profile"] = matrix_profile(P3, 2.2)
    assert to_srgb(picture).getpixel((0, 0)) == 99


def test_inks_with_a_profile_become_rgb() -> None:
    picture = Image.new("CMYK", (4, 4), (0, 0, 0, 0))
    assert to_srgb(picture).mode == "CMYK", "without a profile nothing is known"


def test_the_picture_is_whole_after_saving_again(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 120, 60)).save(out, "jpeg", icc_profile=matrix_profile(P3, 2.2))
    (tmp_path / "a.jpg").write_bytes(out.getvalue())
    converted = open_picture(tmp_path / "a.jpg")
    converted.save(tmp_path / "b.png")
    assert np.abs(np.array(open_picture(tmp_path / "b.png")).astype(int) - np.array(converted)).max() == 0, "twice"
