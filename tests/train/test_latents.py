"""Latents of visits: sampled by key, cut to their bucket, kept where that is right, and told to SDXL as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib_lora.errors import BadDataset, Cancelled
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.train.captions import Dataset, read_dataset
from lib_lora.train.config import JobConfig, make_job
from lib_lora.train.images import cover_crop, open_picture, to_pixels
from lib_lora.train.latents import Latents
from lib_lora.train.plan import Visit
from lib_lora.train.watch import Watch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    place.mkdir()
    generator = np.random.default_rng(0)
    for name, size in (("a.png", (200, 100)), ("b.jpg", (64, 64)), ("c.png", (90, 180))):
        Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(place / name)
    return place


@pytest.fixture
def calls(tiny_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of everything the VAE encodes."""
    made: list[tuple[int, ...]] = []
    encode = DiffusersModel.encode_image

    def spy(self: DiffusersModel, pixels: torch.Tensor) -> torch.Tensor:
        made.append(tuple(pixels.shape))
        return encode(self, pixels)

    monkeypatch.setattr(DiffusersModel, "encode_image", spy)
    return made


def job(folder: Path, **values: object) -> JobConfig:
    chosen = {"data.folder": str(folder), "data.resolution": 64, "data.bucket_step": 8, "data.bucket_low": 64}
    return make_job({**chosen, **{f"data.{key}": value for key, value in values.items()}})


Build = Callable[..., tuple[Latents, Dataset]]


@pytest.fixture
def build(folder: Path, tiny_model: DiffusersModel, tmp_path: Path) -> Build:
    def make(
        watch: Watch | None = None, model: DiffusersModel = tiny_model, **values: object
    ) -> tuple[Latents, Dataset]:
        made = job(folder, **values)
        dataset = read_dataset(made)
        return Latents(model, dataset, made, tmp_path / "run", watch), dataset

    return make


def test_a_visit_draws_its_own_sample_of_what_the_vae_says(build: Build, tiny_model: DiffusersModel) -> None:
    latents, dataset = build()
    pixels = to_pixels(cover_crop(open_picture(dataset.items[0].path), 64))[None]
    mean, std = tiny_model.encode_image(pixels)[0].chunk(2)
    draws = latents.batch([Visit(0, step, 0) for step in range(300)]).latents
    assert draws.shape == (300, 4, 8, 8) and draws.dtype == torch.float32
    scores = (draws - mean) / std
    assert abs(scores.mean().item()) < 0.02 and abs(scores.std().item() - 1) < 0.02
    assert torch.equal(latents.batch([Visit(0, 7, 0)]).latents[0], draws[7])
    assert not torch.equal(latents.batch([Visit(0, 7, 1)]).latents[0], draws[7])


def test_pictures_are_encoded_once_unless_they_change(build: Build, calls: list[tuple[int, ...]]) -> None:
    latents, _ = build()
    assert len(calls) == 3
    latents.batch([Visit(index, 0, index) for index in range(3)])
    assert len(calls) == 3
    for values in ({"crop": "random"}, {"colour": 0.2}, {"cache": "none"}):
        calls.clear()
        latents, _ = build(**values)
        assert calls == []
        once = latents.batch([Visit(0, 0, 0), Visit(0, 0, 0), Visit(0, 0, 1)]).latents
        assert len(calls) == 3
        assert torch.equal(once[0], once[1])
    calls.clear()
    build(flip=True)
    assert len(calls) == 6


def test_without_a_cache_nothing_else_comes_out(build: Build) -> None:
    visits = [Visit(index, 3, index) for index in range(3)]
    for values in ({}, {"flip": True}):
        kept, fresh = (build(cache=cache, **values)[0].batch(visits) for cache in ("ram", "none"))
        assert torch.equal(kept.latents, fresh.latents) and torch.equal(kept.time_ids, fresh.time_ids)


def test_buckets_keep_the_shape(build: Build) -> None:
    latents, dataset = build(buckets=True, resolution=128)
    assert [item.bucket for item in dataset.items] == [(176, 88), (128, 128), (88, 176)]
    shapes = [tuple(latents.batch([Visit(index, 0, 0)]).latents.shape) for index in range(3)]
    assert shapes == [(1, 4, 11, 22), (1, 4, 16, 16), (1, 4, 22, 11)]
    other = latents.batch([Visit(0, 0, 0, bucket=(128, 128), prior=True)])  # as a class picture beside b
    assert tuple(other.latents.shape) == (1, 4, 16, 16)
    assert other.time_ids.tolist() == [[100, 200, 0, 64, 128, 128]]


def test_sizes_for_sdxl(build: Build) -> None:
    latents, _ = build()
    ids = latents.batch([Visit(index, 0, 0) for index in range(3)]).time_ids
    # a: 200 x 100 becomes 128 x 64, of which the middle is kept; c: 90 x 180 becomes 64 x 128
    assert ids.tolist() == [[100, 200, 0, 32, 64, 64], [64, 64, 0, 0, 64, 64], [180, 90, 32, 0, 64, 64]]
    latents, _ = build(crop="random", flip=True)
    seen = {tuple(latents.batch([Visit(0, step, 0)]).time_ids[0].tolist()) for step in range(40)}
    assert {ids[:3] + ids[4:] for ids in seen} == {(100, 200, 0, 64, 64)}
    assert len({ids[3] for ids in seen}) > 15 and all(0 <= ids[3] <= 64 for ids in seen)


def test_a_mirrored_crop_is_told_from_the_other_side(
    folder: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib_lora.train.latents.torch.rand", lambda *shape, generator: torch.tensor([0.25, 0.5]))
    latents, _ = build(crop="random", flip=True)
    lefts = {}
    for step in range(20):
        shot = latents._shot(Visit(0, step, 0))
        lefts[shot.flip] = latents._time_ids(shot)[3].item()
    assert lefts == {False: 16.0, True: 48.0}


def test_flips_are_two_encodings(build: Build, tiny_model: DiffusersModel) -> None:
    latents, dataset = build(flip=True)
    pixels = to_pixels(cover_crop(open_picture(dataset.items[1].path), 64))[None]
    wants = [tiny_model.encode_image(turned)[0].chunk(2)[0] for turned in (pixels, pixels.flip(-1))]
    stds = tiny_model.encode_image(pixels)[0].chunk(2)[1].max()
    sides = []
    for step in range(40):
        draw = latents.batch([Visit(1, step, 0)]).latents[0]
        off = [(draw - want).abs().mean().item() for want in wants]
        sides.append(off[1] < off[0])
        assert min(off) < 2 * stds
    assert 10 < sum(sides) < 30


def test_masks_go_with_their_picture(folder: Path, build: Build) -> None:
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    half.save(folder / "b-masklabel.png")
    told: list[str] = []
    latents, _ = build(Watch(tell=told.append), masks="folder", mask_floor=0.5, flip=True)
    seen = set()
    for step in range(12):
        masks = latents.batch([Visit(0, step, 0), Visit(1, step, 1)]).masks
        assert masks is not None and masks.shape == (2, 1, 8, 8)
        assert torch.equal(masks[0], torch.ones(1, 8, 8))
        seen.add(tuple(masks[1, 0, 0].tolist()))
    assert seen == {(1.0,) * 4 + (0.5,) * 4, (0.5,) * 4 + (1.0,) * 4}
    assert build()[0].batch([Visit(0, 0, 0)]).masks is None
    latents, _ = build(Watch(tell=told.append), masks="alpha")
    assert any("a.png" in line and "count whole" in line for line in told)
    masks = latents.batch([Visit(0, 0, 0)]).masks
    assert masks is not None and torch.equal(masks, torch.ones(1, 1, 8, 8))


@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_a_mask_that_leaves_nothing_is_told(folder: Path, build: Build, floor: float) -> None:
    told: list[str] = []
    Image.new("L", (64, 64), 0).save(folder / "b-masklabel.png")
    Image.new("L", (64, 64), 9).save(folder / "c-masklabel.png")
    build(Watch(tell=told.append), masks="folder", mask_floor=floor)
    assert [line.split(":")[0] for line in told if "black all over" in line] == ["b.jpg"]


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_damage_in_the_middle_leaves_the_picture_out(folder: Path, build: Build, cache: str) -> None:
    whole = bytearray((folder / "a.png").read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    (folder / "a.png").write_bytes(bytes(whole))
    latents, dataset = build(cache=cache)
    assert dataset.visits() == [0, 1, 2]  # its header and end are whole
    assert latents.dataset.visits() == [1, 2]
    assert [item.path.name for item in latents.dataset.skipped] == ["a.png"]
    assert latents.batch([Visit(1, 0, 0)]).latents.shape == (1, 4, 8, 8)
    with pytest.raises(BadDataset, match="a.png"):
        latents.batch([Visit(0, 0, 0)])


def test_if_nothing_can_be_read_that_is_said(folder: Path, build: Build) -> None:
    for path in folder.iterdir():
        whole = bytearray(path.read_bytes())
        if path.suffix == ".jpg":
            path.unlink()
            continue
        whole[len(whole) // 2] ^= 0xFF
        path.write_bytes(bytes(whole))
    with pytest.raises(BadDataset, match="not one picture can be used.*a.png"):
        build()


def test_nan_is_refused_by_the_pictures_name(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = DiffusersModel.encode_image

    def half(self: DiffusersModel, pixels: torch.Tensor) -> torch.Tensor:
        return encode(self, pixels) * (torch.nan if pixels.std() < 0.5 else 1)  # noise that JPEG smoothed

    monkeypatch.setattr(DiffusersModel, "encode_image", half)
    with pytest.raises(BadDataset, match=r"NaN.*b\.jpg|NaN.*a\.png.*--no-half-vae|NaN.*c\.png"):
        build()


def test_encoding_can_be_stopped_and_tells_how_far_it_is(build: Build, calls: list[tuple[int, ...]]) -> None:
    told: list[tuple[int, int]] = []
    build(Watch(progress=lambda done, total: told.append((done, total))))
    assert told == [(1, 3), (2, 3), (3, 3)]
    calls.clear()
    with pytest.raises(Cancelled):
        build(Watch(cancelled=lambda: len(calls) == 2))
    assert len(calls) == 2


def test_pictures_of_one_bucket_are_encoded_together_on_a_gpu(
    build: Build, calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    visits = [Visit(index, 0, index) for index in range(3)]
    alone = build()[0].batch(visits).latents
    calls.clear()
    monkeypatch.setattr(Latents, "_at_once", lambda self, bucket: 2)
    together = build()[0].batch(visits).latents
    assert calls == [(2, 3, 64, 64), (1, 3, 64, 64)]
    assert torch.allclose(alone, together, atol=1e-4)


def test_class_pictures_are_encoded_for_the_bucket_they_stand_in(
    folder: Path, build: Build, tmp_path: Path, calls: list[tuple[int, ...]], tiny_model: DiffusersModel
) -> None:
    classes = tmp_path / "classes"
    classes.mkdir()
    Image.new("RGB", (64, 64), "red").save(classes / "x.png")
    made = job(folder, buckets=True, resolution=128, class_word="dog")
    made = replace(made, prior=replace(made.prior, weight=1.0, folder=str(classes)))
    latents = Latents(tiny_model, read_dataset(made), made, tmp_path)
    assert len(calls) == 3  # buckets differ: the class picture waits for its first visit
    visit = Visit(3, 0, 4, bucket=(176, 88), prior=True)
    assert latents.batch([visit]).latents.shape == (1, 4, 11, 22)
    latents.batch([replace(visit, step=1)])
    assert calls[3:] == [(1, 3, 88, 176)]
