"""Masks are the share of each latent that counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib_lora.errors import BadDataset
from lib_lora.train.images import open_layers, placement
from lib_lora.train.masks import find_mask, latent_mask, mask_of
from lib_lora.train.sections_data import Data


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("F")


def test_each_latent_has_the_mean_of_its_pixels() -> None:
    data = np.random.default_rng(0).integers(0, 256, (32, 48))
    got = latent_mask(grey(data), placement((48, 32), (48, 32)), (48, 32), 0.0)
    want = torch.tensor(data, dtype=torch.float64).div(255).view(4, 8, 6, 8).mean((1, 3))[None]
    assert got.shape == (1, 4, 6)
    assert torch.allclose(got.double(), want, atol=1e-6)
    floored = latent_mask(grey(data), placement((48, 32), (48, 32)), (48, 32), 0.25)
    assert torch.allclose(floored.double(), 0.25 + 0.75 * want, atol=1e-6)


def test_the_mask_is_cut_as_the_picture_is() -> None:
    data = np.zeros((64, 128))
    data[:, 96:] = 255  # the right quarter
    for at, want in ((0.0, 0.0), (1.0, 0.5), (0.5, 0.0)):
        place = placement((128, 64), (64, 64), (at, 0.5))
        assert latent_mask(grey(data), place, (64, 64), 0.0).mean().item() == pytest.approx(want)
    place = placement((128, 64), (32, 32), (1.0, 0.5))  # the picture is scaled down
    assert latent_mask(grey(data), place, (32, 32), 0.0).mean().item() == pytest.approx(0.5)


@pytest.mark.parametrize("size", [(16, 8), (256, 128), (100, 50)])
def test_a_mask_of_another_size_is_stretched(size: tuple[int, int]) -> None:
    data = np.zeros((size[1], size[0]))
    data[:, size[0] // 2 :] = 255
    got = latent_mask(grey(data), placement((128, 64), (128, 64)), (128, 64), 0.0)
    assert got.shape == (1, 8, 16)
    assert torch.equal(got[..., :7], torch.zeros(1, 8, 7)) and torch.equal(got[..., 9:], torch.ones(1, 8, 7))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_alpha(tmp_path: Path, kind: str) -> None:
    picture = Image.new("RGBA", (16, 8), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (8, 0, 16, 8))
    if kind == "P":
        picture = picture.convert("RGB").quantize(4)
        picture.info["transparency"] = picture.getpixel((12, 4))
        picture.save(tmp_path / "a.png", transparency=picture.info["transparency"])
    else:
        picture.convert(kind).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    data = Data(masks="alpha")
    assert find_mask(path, data) == path
    mask = mask_of(path, open_layers(path)[1], data)
    assert mask is not None
    assert latent_mask(mask, placement((16, 8), (16, 8)), (16, 8), 0.0).tolist() == [[[1.0, 0.0]]]


def test_a_picture_without_transparency_has_none(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert mask_of(tmp_path / "a.png", open_layers(tmp_path / "a.png")[1], Data(masks="alpha")) is None
    assert mask_of(None, None, Data(masks="folder")) is None
    assert find_mask(tmp_path / "a.png", Data()) is None


def test_masks_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_text("torn")
    Image.new("1", (8, 8), 1).save(tmp_path / "masks" / "b.bmp")
    data = Data(masks="folder", mask_folder=str(tmp_path / "masks"))
    assert find_mask(tmp_path / "b.jpg", data) == tmp_path / "masks" / "b.bmp"
    assert find_mask(tmp_path / "c.jpg", data) is None
    mask = mask_of(tmp_path / "masks" / "b.bmp", None, data)
    assert mask is not None and mask.getextrema() == (255.0, 255.0)
    with pytest.raises(BadDataset, match=r"masks.a.png.*cannot be read"):
        mask_of(find_mask(tmp_path / "a.jpg", data), None, data)
