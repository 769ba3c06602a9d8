"""Pictures as latents and captions as text states, computed once where nothing about them changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lora.errors import BadDataset
from lib_lora.ports import DiffusionModel
from lib_lora.train import keyed
from lib_lora.train.captions import Dataset, Item
from lib_lora.train.config import Data
from lib_lora.train.images import cover_crop, open_picture, to_pixels

CENTRE = (0.5, 0.5)


@dataclass(frozen=True)
class Visit:
    """One look at one picture: which item, and where in the run (`step`, `slot` within the step)."""

    index: int
    step: int
    slot: int


class Latents:
    """The latents of a dataset.

    With a centred crop each picture, and its mirror image if flips are on, is encoded once; the VAE's mean and
    standard deviation are kept, so each visit still draws its own sample. A random crop is encoded at every visit.
    """

    def __init__(self, model: DiffusionModel, dataset: Dataset, data: Data, seed: int) -> None:
        self._model, self._items, self._data, self._seed = model, dataset.items, data, seed
        self._kept: dict[tuple[int, bool], Tensor] = {}
        if data.crop == "center":
            for index, item in enumerate(dataset.items):
                for flip in (False, True) if data.flip else (False,):
                    self._kept[index, flip] = self._encode(item, CENTRE, flip)

    def batch(self, visits: Sequence[Visit]) -> Tensor:
        """(batch, 4, h, w) float32 on the CPU: a sample of each visit's latent distribution."""
        return torch.stack([self._draw(visit) for visit in visits])

    def _draw(self, visit: Visit) -> Tensor:
        where = (self._seed, visit.step, visit.slot)
        flip = self._data.flip and keyed.coin(self._seed, "flip", *where[1:])
        if self._data.crop == "center":
            moments = self._kept[visit.index, flip]
        else:
            at = torch.rand(2, generator=keyed.generator(self._seed, "crop", *where[1:])).tolist()
            moments = self._encode(self._items[visit.index], (at[0], at[1]), flip)
        mean, std = moments.chunk(2)
        return mean + std * torch.randn(mean.shape, generator=keyed.generator(self._seed, "latent", *where[1:]))

    @torch.no_grad()
    def _encode(self, item: Item, at: tuple[float, float], flip: bool) -> Tensor:
        """(8, h, w) float32: mean and std. Raises BadDataset for latents that are not finite."""
        pixels = to_pixels(cover_crop(open_picture(item.path), self._data.resolution, at), flip)
        moments = self._model.encode_image(pixels[None])[0].float().cpu()
        if not torch.isfinite(moments).all():
            raise BadDataset(
                f"the VAE gives NaN or infinity for {str(item.path)!r}; use the VAE in float32 (--no-half-vae) or bf16"
            )
        return moments


class TextStates:
    """Text states by caption: kept if the text encoder stands still, computed each time if it is trained."""

    def __init__(self, model: DiffusionModel, captions: Sequence[str], *, trained: bool) -> None:
        self._model = model
        self._kept: dict[str, Tensor] = {}
        if not trained:
            with torch.no_grad():
                for caption in dict.fromkeys(captions):
                    self._kept[caption] = model.encode_text([caption])[0].detach()

    def batch(self, captions: Sequence[str]) -> Tensor:
        """(batch, tokens, width) text states, differentiable if the text encoder is trained."""
        if self._kept:
            return torch.stack([self._kept[caption] for caption in captions])
        return self._model.encode_text(list(captions))
