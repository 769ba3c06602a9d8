"""Latents on disk: found again while nothing changed, made anew after any change or damage."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.train.captions import read_dataset
from lib_lora.train.config import make_job
from lib_lora.train.latent_cache import vae_identity
from lib_lora.train.latents import Latents
from lib_lora.train.plan import Visit
from lib_lora.train.watch import Watch

VISITS = [Visit(0, 0, 0), Visit(1, 0, 1)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    place.mkdir()
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGBA", (96, 64), colour).save(place / name)
    return place


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each picture that is encoded."""
    made: list[int] = []
    encode = DiffusersModel.encode_image

    def spy(self: DiffusersModel, pixels: torch.Tensor) -> torch.Tensor:
        made.append(1)
        return encode(self, pixels)

    monkeypatch.setattr(DiffusersModel, "encode_image", spy)
    return made


@pytest.fixture
def build(folder: Path, tmp_path: Path, tiny_model: DiffusersModel) -> Callable[..., Latents]:
    def make(model: DiffusersModel = tiny_model, tell: Callable[[str], object] = print, **values: Any) -> Latents:
        chosen = {"folder": str(folder), "resolution": 64, "cache": "disk", **values}
        job = make_job({f"data.{name}": value for name, value in chosen.items()})
        return Latents(model, read_dataset(job), job, tmp_path / "run", Watch(tell=tell))

    return make


def test_a_second_run_encodes_nothing_and_gets_the_same(
    build: Callable[..., Latents], encoded: list[int], tmp_path: Path
) -> None:
    first = build().batch(VISITS).latents
    assert len(encoded) == 2
    files = sorted((tmp_path / "run" / "latents").rglob("*"))
    assert sum(path.suffix == ".safetensors" for path in files) == 2 and not any(".tmp" in path.name for path in files)
    assert torch.equal(build().batch(VISITS).latents, first)
    assert len(encoded) == 2
    assert torch.equal(build(cache="ram").batch(VISITS).latents, first)


def test_every_change_is_noticed(
    build: Callable[..., Latents], encoded: list[int], folder: Path, make_tiny: Callable[[int], DiffusersModel]
) -> None:
    def again(**values: Any) -> int:
        encoded.clear()
        build(**values)
        return len(encoded)

    assert again() == 2
    assert again() == 0
    os.utime(folder / "a.png", ns=(1, 1))
    assert again() == 1
    stamp = (folder / "a.png").stat()
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes() + b"\0")  # as a file that grew in the same tick
    os.utime(folder / "a.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert again() == 1
    assert again(resolution=128) == 2
    assert again(resolution=128, buckets=True, bucket_step=32, bucket_low=64) == 2
    assert again(flip=True) == 2
    assert again(flip=True) == 0
    assert again(masks="alpha") == 2
    assert again(masks="alpha", mask_floor=0.5) == 2
    assert again(masks="alpha", mask_floor=0.5) == 0
    (folder / "a.png").rename(folder / "c.png")
    assert again() == 1
    other = make_tiny(0)
    assert vae_identity(other) == vae_identity(make_tiny(0))
    assert again(model=other) == 0
    with torch.no_grad():
        other.vae.encoder.conv_in.bias[0] += 1e-3
    assert again(model=other) == 2
    assert again() == 0  # and the first VAE's are still there


def test_the_identity_of_a_vae(make_tiny: Callable[[int], DiffusersModel]) -> None:
    model = make_tiny(1)
    seen = {vae_identity(model)}
    with torch.no_grad():
        model.vae.decoder.conv_in.bias[0] += 1
    assert vae_identity(model) in seen  # the decoder makes no latents
    with torch.no_grad():
        model.vae.quant_conv.bias[0] += 1
    seen.add(vae_identity(model))
    model.vae.to(torch.bfloat16)
    seen.add(vae_identity(model))
    model.vae.register_to_config(scaling_factor=0.13025)
    seen.add(vae_identity(model))
    assert len(seen) == 4


class Hidden:
    """A model that does not show its VAE."""

    def __init__(self, model: DiffusersModel) -> None:
        self._inner = model

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._inner.encode_image(pixels)


def test_a_vae_that_is_not_shown_is_known_by_what_it_does(make_tiny: Callable[[int], DiffusersModel]) -> None:
    model = make_tiny(2)
    hidden: Any = Hidden(model)
    before = vae_identity(hidden)
    assert vae_identity(hidden) == before
    with torch.no_grad():
        model.vae.encoder.conv_in.weight.mul_(1.01)
    assert vae_identity(hidden) != before


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_damaged_files_are_made_anew_and_told(
    build: Callable[..., Latents], encoded: list[int], tmp_path: Path, damage: str
) -> None:
    first = build().batch(VISITS).latents
    files = sorted((tmp_path / "run" / "latents").rglob("*.safetensors"))
    data = bytearray(files[0].read_bytes())
    if damage == "flip":
        data[-5] ^= 0x10
    elif damage == "other":
        data = bytearray(files[1].read_bytes())
    files[0].write_bytes({"cut": bytes(data[: len(data) // 2]), "empty": b""}.get(damage, bytes(data)))
    told: list[str] = []
    encoded.clear()
    assert torch.equal(build(tell=told.append).batch(VISITS).latents, first)
    assert len(encoded) == 1
    assert len(told) == 1 and files[0].name in told[0] and "made anew" in told[0]
    told.clear()
    build(tell=told.append)
    assert (len(encoded), told) == (1, [])


def test_a_folder_that_cannot_be_written_falls_back_to_memory(
    build: Callable[..., Latents], encoded: list[int], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    told: list[str] = []
    latents = build(tell=told.append, cache_folder=str(tmp_path / "file"))
    want = build(cache="ram").batch(VISITS).latents
    encoded.clear()
    assert torch.equal(latents.batch(VISITS).latents, want)
    assert encoded == []
    assert len(told) == 1 and "stay in memory" in told[0]


def test_masks_are_kept_too(build: Callable[..., Latents], folder: Path) -> None:
    half = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    half.paste((0, 0, 0, 0), (0, 0, 32, 64))
    half.save(folder / "a.png")
    first, second = (build(masks="alpha").batch(VISITS) for _ in range(2))
    assert first.masks is not None and second.masks is not None
    assert torch.equal(first.masks, second.masks)
    assert first.masks[0, 0, 0].tolist() == [0.0] * 4 + [1.0] * 4
