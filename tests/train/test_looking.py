"""One look at a file: headers without decoding, measures that hold, everything remembered."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance, ImageFilter

from lib_lora.train import looking
from lib_lora.train.looking import THUMBNAIL, Looker, blur_of, difference_hash
from tests.train.drawn import put, scene


def distance(a: Image.Image, b: Image.Image) -> int:
    return (difference_hash(a) ^ difference_hash(b)).bit_count()


def test_a_hash_is_the_brightness_of_neighbours() -> None:
    rising = Image.linear_gradient("L").rotate(90).resize((90, 80))  # brighter to the right
    assert difference_hash(rising) == 2**64 - 1
    assert difference_hash(rising.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0


@pytest.mark.parametrize("seed", range(6))
def test_a_hash_stays_with_the_picture(seed: int) -> None:
    picture = scene(seed)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=30)
    for other in (
        picture.resize((80, 80)),
        Image.open(file).convert("RGB"),
        ImageEnhance.Brightness(picture).enhance(0.7),
        picture.convert("L"),
    ):
        assert distance(picture, other) <= 8
    assert all(distance(picture, scene(100 + other)) > 12 for other in range(6))


@pytest.mark.parametrize("seed", range(3))
def test_blur_grows_with_blur_and_tells_sharp_from_blurred(seed: int) -> None:
    values = [
        blur_of(scene(seed).filter(ImageFilter.GaussianBlur(radius)) if radius else scene(seed))
        for radius in (0, 0.5, 1, 2, 4)
    ]
    assert values == sorted(values) and values[0] < 0.5 and values[-1] > 0.7


def test_blur_of_one_colour_and_of_strips_is_none() -> None:
    assert blur_of(Image.new("RGB", (64, 64), (9, 9, 9))) == 0.0
    assert blur_of(Image.new("RGB", (1, 4000))) == 0.0
    assert blur_of(scene(0, (3, 7))) <= 1.0


def test_a_header_is_read_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "a.png", size=(320, 200))

    def refuse(*args: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", refuse)
    header = Looker().header(path)
    assert (header.size, header.format, header.animated, header.broken) == ((320, 200), "PNG", False, "")
    assert header.bytes == path.stat().st_size


def test_an_animation_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    scene(0).save(path, save_all=True, append_images=[scene(1)])
    assert Looker().header(path).animated
    assert not Looker().header(put(tmp_path, "b.gif")).animated


def test_a_look_gives_all_at_once(tmp_path: Path) -> None:
    look = Looker().look(put(tmp_path, "a.png", size=(800, 400)))
    assert not look.broken and not look.transparent and look.grey is not None and look.grey.shape == (16, 16)
    thumbnail = Image.open(io.BytesIO(look.thumbnail))
    assert thumbnail.format == "JPEG" and thumbnail.size == (THUMBNAIL, THUMBNAIL // 2)


def test_transparency_counts_only_where_something_shines_through(tmp_path: Path) -> None:
    opaque, clear = scene(0).convert("RGBA"), scene(0).convert("RGBA")
    opaque.save(tmp_path / "opaque.png")
    clear.putalpha(Image.new("L", clear.size, 100))
    clear.save(tmp_path / "clear.png")
    assert not Looker().look(tmp_path / "opaque.png").transparent
    assert Looker().look(tmp_path / "clear.png").transparent


def test_broken_files_say_why(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jpg")
    path.write_bytes(path.read_bytes()[:2000])
    (tmp_path / "b.png").write_bytes(b"no picture")
    for name in ("a.jpg", "b.png", "gone.png"):
        assert name in Looker().header(tmp_path / name).broken
        assert name in Looker().look(tmp_path / name).broken


def test_files_are_decoded_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, looker, read = put(tmp_path, "a.png"), Looker(), []
    monkeypatch.setattr(looking, "open_layers", lambda path: read.append(path) or (scene(0), None))
    assert looker.known(path) is None
    first = looker.look(path)
    assert looker.look(path) is first is looker.known(path) and len(read) == 1
    os.utime(path, (1, 1))
    assert looker.known(path) is None
    looker.look(path)
    assert len(read) == 2


def test_time_is_kept_and_the_rest_comes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [put(tmp_path, f"{n}.png", n, size=(64, 64)) for n in range(20)]
    monkeypatch.setattr(looking, "_read", lambda path: time.sleep(0.05) or looking.Look())
    looker = Looker()
    looker.look_at(paths, 0.06)
    done = [path for path in paths if looker.known(path)]
    assert 0 < len(done) < len(paths)
    looker.look_at(paths, 60)
    assert all(looker.known(path) for path in paths)


def test_what_is_remembered_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "_KEPT", 2)
    looker, paths = Looker(), [put(tmp_path, f"{n}.png", n, size=(64, 64)) for n in range(3)]
    for path in paths:
        looker.look(path)
    assert [looker.known(path) is None for path in paths] == [True, False, False]
