"""Latents kept for later visits: in memory, or on disk under a key that notices every change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lib_lora.errors import BadFile
from lib_lora.files.tensors import tensor_bytes, tensor_reader, write_tensors
from lib_lora.ports import DiffusionModel
from lib_lora.train.captions import Item
from lib_lora.train.images import CENTRE, Size
from lib_lora.train.sections_data import Data

MAKE = 2  # counted up when the same picture would give other latents


@dataclass(frozen=True)
class Shot:
    """One way to look at an item: cut to which size and where, mirrored, colours changed (see `images.stray`)."""

    index: int
    bucket: Size
    flip: bool = False
    at: tuple[float, float] = CENTRE
    colour: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Piece:
    """What a shot gives: mean and std of its latents, (8, h, w), and its mask (1, h, w) if it has one. float32, CPU."""

    moments: Tensor
    mask: Tensor | None = None


class Store(Protocol):
    """Where pieces are kept."""

    def get(self, shot: Shot) -> Piece | None:
        """The piece kept for a shot, None if there is none."""

    def put(self, shot: Shot, piece: Piece) -> None:
        """Keep a piece."""


class InMemory:
    """Pieces in main memory."""

    def __init__(self) -> None:
        self._kept: dict[Shot, Piece] = {}

    def get(self, shot: Shot) -> Piece | None:
        """See `Store`."""
        return self._kept.get(shot)

    def put(self, shot: Shot, piece: Piece) -> None:
        """See `Store`."""
        self._kept[shot] = piece


@dataclass(frozen=True)
class Origin:
    """What latents on disk depend on beside the shot: the items, the VAE (see `vae_identity`) and the settings."""

    items: tuple[Item, ...]
    vae: str
    data: Data

    def key(self, shot: Shot) -> str:
        """A text that is another one as soon as a shot would give other latents or another mask."""
        item = self.items[shot.index]
        facts: dict[str, Any] = {
            "make": MAKE,
            "picture": _stamp(item.path),
            "bucket": shot.bucket,
            "flip": shot.flip,
            "at": shot.at,
            "vae": self.vae,
        }
        if item.mask is not None:
            facts["mask"] = [self.data.masks, self.data.mask_floor, *_stamp(item.mask)]
        return json.dumps(facts, sort_keys=True)


class OnDisk:
    """Pieces in a folder, one file each, written whole or not at all; what the folder refuses stays in memory.

    A file that is damaged counts as missing, and `tell` says so.
    """

    def __init__(self, folder: Path, origin: Origin, tell: Callable[[str], object]) -> None:
        self._folder, self._origin, self._tell = folder, origin, tell
        self._memory = InMemory()
        self._refused = False
        self._keys: dict[Shot, str] = {}  # as they were at first: a picture edited during the run changes nothing

    def get(self, shot: Shot) -> Piece | None:
        """See `Store`."""
        key = self._key(shot)
        path = self._path(key)
        try:
            if key and path.is_file():
                return _read(path, key)
        except (BadFile, OSError) as error:
            self._tell(f"latents in {str(path)!r} cannot be read ({error}); they are made anew")
        return self._memory.get(shot)

    def put(self, shot: Shot, piece: Piece) -> None:
        """See `Store`."""
        key = self._key(shot)
        if key and not self._refused:
            try:
                write_tensors(self._path(key), _tensors(piece), {"key": key, "sum": _sum(_tensors(piece))})
                return
            except BadFile as error:
                self._refused = True
                self._tell(f"latents cannot be kept in {str(self._folder)!r} ({error}); they stay in memory")
        self._memory.put(shot, piece)

    def _key(self, shot: Shot) -> str:
        """The shot's key; "" for a picture that is gone."""
        if shot not in self._keys:
            try:
                self._keys[shot] = self._origin.key(shot)
            except OSError:
                return ""
        return self._keys[shot]

    def _path(self, key: str) -> Path:
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"


def vae_identity(model: DiffusionModel) -> str:
    """A hash of what makes latents: the VAE's weights without the decoder's, their dtype, and the scale.

    Where a model does not show its VAE, it is a hash of what it makes of a test picture.
    """
    digest = hashlib.blake2b(digest_size=16)
    inner = getattr(model, "model", None)
    vae = getattr(model, "vae", None) or getattr(inner, "first_stage_model", None)
    if not isinstance(vae, torch.nn.Module):
        picture = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            digest.update(tensor_bytes(model.encode_image(picture).float()))
        return digest.hexdigest()
    for name, tensor in sorted(vae.state_dict().items()):
        if "decoder" not in name:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor_bytes(tensor))
    scale = getattr(getattr(vae, "config", None), "scaling_factor", None) or getattr(inner, "scale_factor", None)
    digest.update(f"{None if scale is None else float(scale)}".encode())
    return digest.hexdigest()


def _stamp(path: Path) -> list[Any]:
    about = path.stat()
    return [str(path.absolute()), about.st_mtime_ns, about.st_size]


def _tensors(piece: Piece) -> dict[str, Tensor]:
    return {"moments": piece.moments} if piece.mask is None else {"moments": piece.moments, "mask": piece.mask}


def _sum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode() + tensor_bytes(tensors[name]))
    return digest.hexdigest()


def _read(path: Path, key: str) -> Piece:
    """The piece in a file. Raises BadFile if it is damaged."""
    with tensor_reader(path) as (header, read):
        tensors = {name: read(name) for name in header.tensors}
        told = header.metadata
    if told.get("key") != key or told.get("sum") != _sum(tensors) or "moments" not in tensors:
        raise BadFile(f"{path} is damaged; remove it")
    return Piece(tensors["moments"], tensors.get("mask"))
