"""Pictures as latents: encoded once where nothing about a picture changes, at every visit where something does."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lib_lora.errors import BadDataset
from lib_lora.keys.layer_key import UNET
from lib_lora.ports import DiffusionModel
from lib_lora.train import keyed
from lib_lora.train.captions import Dataset
from lib_lora.train.concepts import expanded
from lib_lora.train.config import JobConfig
from lib_lora.train.images import Size, cover_crop, open_layers, placement, stray, to_pixels
from lib_lora.train.latent_cache import InMemory, OnDisk, Origin, Piece, Shot, Store, vae_identity
from lib_lora.train.masks import latent_mask, mask_of
from lib_lora.train.plan import Visit
from lib_lora.train.watch import Watch

log = logging.getLogger(__name__)
AT_ONCE = 4 * 512 * 512  # pixels a GPU encodes together


@dataclass(frozen=True)
class LatentBatch:
    """What the loss needs of a batch of visits, float32 on the CPU.

    `latents` (b, 4, h, w); `masks` (b, 1, h, w) in [0, 1], None unless the job has masks; `time_ids` (b, 6): height and
    width of the original picture, top and left of the crop in the scaled picture, height and width of the crop
    (Podell et al. 2023, arXiv:2307.01952, 2.2).
    """

    latents: Tensor
    masks: Tensor | None
    time_ids: Tensor


class Latents:
    """The latents of a dataset.

    With a centred crop and unchanged colours each picture, and its mirror image if flips are on, is encoded once; the
    VAE's mean and standard deviation are kept, so each visit still draws its own sample. Else, and with
    `data.cache = "none"`, pictures are encoded at every visit.

    Every picture is opened once before training. `dataset` is the one given, without those that turned out broken:
    plan the run by it. Class pictures of several buckets are encoded when they are first needed.
    """

    def __init__(
        self, model: DiffusionModel, dataset: Dataset, job: JobConfig, folder: Path, watch: Watch | None = None
    ) -> None:
        self._model, self._data, self._seed = model, job.data, job.training.seed
        self._items = dataset.items
        self._watch = watch or Watch(tell=log.warning)
        self._keeps = self._data.crop == "center" and not self._data.colour and self._data.cache != "none"
        self._store: Store = InMemory()
        if self._keeps and self._data.cache == "disk":
            place = expanded(self._data.cache_folder) if self._data.cache_folder else folder / "latents"
            origin = Origin(self._items, vae_identity(model), self._data)
            self._store = OnDisk(place, origin, self._watch.tell)
        self._bare: set[str] = set()  # pictures that were to have a mask
        self._dark: set[str] = set()  # pictures of which the mask leaves nothing
        broken = self._prepare()
        self.dataset = dataset.without(broken) if broken else dataset
        if not self.dataset.visits():
            raise BadDataset(
                f"not one picture can be used; the first: {next(iter(broken.values()), 'none is visited')}"
            )

    def batch(self, visits: Sequence[Visit]) -> LatentBatch:
        """A sample of each visit's latent distribution, with masks and SDXL's sizes.

        Raises BadDataset for a picture that has become unreadable, and for latents that are not finite.
        """
        shots = [self._shot(visit) for visit in visits]
        if self._keeps:
            pieces = [self._kept(shot) for shot in shots]
        else:
            pieces = [piece for group in _groups(shots, self._at_once(shots[0].bucket)) for piece in self._made(group)]
        drawn = [self._draw(visit, piece.moments) for visit, piece in zip(visits, pieces, strict=True)]
        masks = None
        if self._data.masks != "none":
            whole = torch.ones(1, *drawn[0].shape[1:])
            masks = torch.stack([whole if piece.mask is None else piece.mask for piece in pieces])
        return LatentBatch(torch.stack(drawn), masks, torch.stack([self._time_ids(shot) for shot in shots]))

    def _shot(self, visit: Visit) -> Shot:
        where, item = (visit.step, visit.slot), self._items[visit.index]
        flip = self._data.flip and keyed.coin(self._seed, "flip", *where)
        shot = Shot(visit.index, visit.bucket or item.bucket, flip)
        if self._data.crop == "random":
            at = torch.rand(2, generator=keyed.generator(self._seed, "crop", *where)).tolist()
            shot = replace(shot, at=(at[0], at[1]))
        if self._data.colour:
            far = (torch.rand(3, generator=keyed.generator(self._seed, "colour", *where)) * 2 - 1).tolist()
            shot = replace(shot, colour=(far[0], far[1], far[2]))
        return shot

    def _draw(self, visit: Visit, moments: Tensor) -> Tensor:
        mean, std = moments.chunk(2)
        generator = keyed.generator(self._seed, "latent", visit.step, visit.slot)
        return mean + std * torch.randn(mean.shape, generator=generator)

    def _time_ids(self, shot: Shot) -> Tensor:
        """(6,) float32; a mirrored picture is cut where its mirror image is."""
        size, (width, height) = self._items[shot.index].size, shot.bucket
        place = placement(size, shot.bucket, shot.at)
        left = place.scaled[0] - width - place.left if shot.flip else place.left
        return torch.tensor([size[1], size[0], place.top, left, height, width], dtype=torch.float32)

    def _prepare(self) -> dict[int, str]:
        """Open every picture, and encode those that are kept; returns the broken ones and why."""
        broken: dict[int, str] = {}
        shots = self._shots()
        done = 0
        # Groups do not depend on what is kept already: a GPU may round differently in batches of other sizes
        for group in _groups(shots, self._at_once(shots[0].bucket) if shots else 1):
            self._watch.check("reading pictures")
            group = [shot for shot in group if shot.index not in broken]
            if not self._keeps:
                for shot in group:
                    self._try(shot, broken)
            elif any(self._store.get(shot) is None for shot in group):
                opened = [(shot, found) for shot in group if (found := self._try(shot, broken)) is not None]
                for (shot, _), piece in zip(opened, self._encoded(opened), strict=True):
                    self._store.put(shot, piece)
            done += len(group)
            self._watch.progress(done, len(shots))
        if self._bare:
            names = ", ".join(sorted(self._bare))
            self._watch.tell(f"{names}: no transparency to be a mask; these pictures count whole")
        if self._dark:
            names = ", ".join(sorted(self._dark))
            self._watch.tell(f"{names}: the mask is black all over; nothing is learned from these pictures")
        return broken

    def _shots(self) -> list[Shot]:
        """Everything that can be made before the first step, pictures of one bucket together."""
        usual = {item.bucket for item in self._items if item.repeats and not item.prior}
        flips = (False, True) if self._data.flip and self._keeps else (False,)
        shots = []
        for index, item in enumerate(self._items):
            if item.repeats and not (item.prior and len(usual) > 1):
                bucket = next(iter(usual)) if item.prior else item.bucket
                shots += [Shot(index, bucket, flip) for flip in flips]
        return sorted(shots, key=lambda shot: (shot.bucket, shot.index, shot.flip))

    def _kept(self, shot: Shot) -> Piece:
        piece = self._store.get(shot)
        if piece is None:
            piece = self._made([shot])[0]
            self._store.put(shot, piece)
        return piece

    def _made(self, shots: Sequence[Shot]) -> list[Piece]:
        return self._encoded([(shot, self._open(shot)) for shot in shots])

    def _try(self, shot: Shot, broken: dict[int, str]) -> tuple[Tensor, Tensor | None] | None:
        try:
            return self._open(shot)
        except BadDataset as error:
            broken[shot.index] = str(error)
            return None

    def _open(self, shot: Shot) -> tuple[Tensor, Tensor | None]:
        """Pixels (3, H, W) and mask (1, H/8, W/8) of a shot. Raises BadDataset if the picture cannot be read."""
        item = self._items[shot.index]
        picture, alpha = open_layers(item.path)
        mask = mask_of(item.mask, alpha, self._data)
        if item.mask is not None and mask is None:
            self._bare.add(item.path.name)
        weights = None
        if mask is not None:
            place = placement(picture.size, shot.bucket, shot.at)
            weights = latent_mask(mask, place, shot.bucket, self._data.mask_floor)
            weights = weights.flip(-1) if shot.flip else weights
            if float(weights.max()) <= self._data.mask_floor:
                self._dark.add(item.path.name)
        picture = cover_crop(picture, shot.bucket, shot.at)
        if shot.colour is not None:
            picture = stray(picture, self._data.colour, shot.colour)
        return to_pixels(picture, shot.flip), weights

    @torch.no_grad()
    def _encoded(self, opened: Sequence[tuple[Shot, tuple[Tensor, Tensor | None]]]) -> list[Piece]:
        """The pieces of opened shots of one bucket. Raises BadDataset for latents that are not finite."""
        if not opened:
            return []
        moments = self._model.encode_image(torch.stack([pixels for _, (pixels, _) in opened])).float().cpu()
        pieces = []
        for (shot, (_, mask)), row in zip(opened, moments, strict=True):
            if not torch.isfinite(row).all():
                raise BadDataset(
                    f"the VAE gives NaN or infinity for {str(self._items[shot.index].path)!r}; "
                    "use the VAE in float32 (--no-half-vae) or bf16"
                )
            pieces.append(Piece(row.clone(), mask))
        return pieces

    def _at_once(self, bucket: Size) -> int:
        """Pictures encoded together; a CPU gains nothing from more than one."""
        device = next(self._model.roots()[UNET].parameters()).device
        return 1 if device.type == "cpu" else max(1, AT_ONCE // (bucket[0] * bucket[1]))


def _groups(shots: Sequence[Shot], most: int) -> Iterator[list[Shot]]:
    """Runs of shots of one bucket, at most so many together."""
    group: list[Shot] = []
    for shot in shots:
        if group and (len(group) == most or group[0].bucket != shot.bucket):
            yield group
            group = []
        group.append(shot)
    if group:
        yield group
