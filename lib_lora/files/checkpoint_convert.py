"""A CompVis or sgm state dict <-> the state dicts of diffusers' UNet and VAE and transformers' text encoders.

SD1, SD2 and SDXL. OpenCLIP's towers become transformers': fused projections are split, the projection transposed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lib_lora.errors import BadFile
from lib_lora.keys import open_clip, text_encoder, versions
from lib_lora.keys.checkpoint import (
    COMPVIS_PREFIXES,
    OPEN_CLIP_PREFIXES,
    SDXL_CLIP_PREFIX,
    VAE,
    checkpoint_key,
    checkpoint_pieces,
    diffusers_to_ldm,
)
from lib_lora.keys.layer_key import TE1, TE2, UNET
from lib_lora.keys.open_clip import OpenClipPlace
from lib_lora.keys.vae import CONV_IN_LDM

if TYPE_CHECKING:
    from torch import Tensor

Parts = dict[str, dict[str, "Tensor"]]
Shape = tuple[int, ...]
_PARAMETERS = ("weight", "bias")
_PREFIX_OF_TOWER = {part: prefix for prefix, part in OPEN_CLIP_PREFIXES.items()}
_POSITION_IDS = "position_ids"


@dataclass(frozen=True)
class Share:
    """What of a checkpoint's tensor is the tensor `name`, in diffusers' or transformers' naming, of `part`."""

    part: str
    name: str
    rows: tuple[int, int] | None = None
    transposed: bool = False
    squeezed: bool = False  # a 1x1 convolution that diffusers keeps as Linear

    def shape(self, whole: Shape) -> Shape:
        """Its shape, if the whole tensor's is `whole`."""
        if self.rows is not None:
            whole = (self.rows[1] - self.rows[0], *whole[1:])
        if self.transposed and len(whole) == 2:
            whole = (whole[1], whole[0])
        return whole[:2] if self.squeezed else whole

    def of(self, whole: Tensor) -> Tensor:
        """The tensor itself: a view."""
        share = whole if self.rows is None else whole[self.rows[0] : self.rows[1]]
        if self.transposed and share.dim() == 2:
            share = share.t()
        return share[:, :, 0, 0] if self.squeezed else share


def shares(name: str, shape: Shape) -> tuple[Share, ...]:
    """What a checkpoint's tensor holds; () for what is in none of the networks (schedules, EMA, `position_ids`)."""
    pieces = checkpoint_pieces(name, shape)
    if pieces:
        return tuple(Share(p.key.part, f"{p.key.path}.{p.parameter}", p.rows, p.transposed) for p in pieces)
    hit = checkpoint_key(name)
    if hit is None or hit[0].part != VAE or hit[1] not in _PARAMETERS:
        return ()
    path = hit[0].path
    squeezed = path in CONV_IN_LDM and len(shape) == 4 and shape[2:] == (1, 1)
    return (Share(VAE, f"{path}.{hit[1]}", squeezed=squeezed),)


def require_parts(found: Iterable[str], count: int, sdxl: bool = False) -> None:
    """Raises BadFile if a whole part is missing among `count` tensors."""
    present = set(found)
    missing = [part for part in (UNET, VAE, TE1, *((TE2,) if sdxl else ())) if part not in present]
    if missing:
        raise BadFile(
            f"no weights of {', '.join(missing)} among {count} tensors: "
            "this is not a complete checkpoint in CompVis or sgm naming; choose a whole checkpoint file"
        )


def compvis_to_parts(state: Mapping[str, Tensor]) -> Parts:
    """`{"unet": ..., "vae": ..., "te1": ...}`, with SDXL "te2", in diffusers / transformers names; views, not copies.

    Names outside these networks are left out. Raises BadFile if a whole part is missing.
    """
    parts: Parts = {}
    for name, tensor in state.items():
        for share in shares(name, tuple(tensor.shape)):
            parts.setdefault(share.part, {})[share.name] = share.of(tensor)
    require_parts(parts, len(state))
    return parts


def parts_to_compvis(parts: Mapping[str, Mapping[str, Tensor]], version: str = versions.SD1) -> dict[str, Tensor]:
    """The inverse of `compvis_to_parts`. Raises BadFile naming the first tensor that the version does not have.

    SD2's last text block, which is never run and which transformers' form lacks, is not made up.
    """
    state: dict[str, Tensor] = {}
    for part, content in parts.items():
        if part == TE2 or (part == TE1 and version == versions.SD2):
            state.update(_tower(part, content))
        else:
            state.update(_plain(part, content, version))
    return state


def _plain(part: str, content: Mapping[str, Tensor], version: str) -> Iterator[tuple[str, Tensor]]:
    prefix = SDXL_CLIP_PREFIX if part == TE1 and version == versions.SDXL else COMPVIS_PREFIXES[part]
    for name, tensor in content.items():
        path, _, parameter = name.rpartition(".")
        if parameter == _POSITION_IDS:
            yield prefix + name, tensor
            continue
        ldm = diffusers_to_ldm(part, path, version)
        if ldm is None:
            raise _foreign(part, name, version)
        if part == VAE and path in CONV_IN_LDM and parameter == "weight" and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        yield f"{prefix}{ldm}.{parameter}", tensor


def _tower(part: str, content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's tensors. Raises BadFile for a foreign tensor, and where a third of a fused one is missing."""
    import torch

    depth = len({name.split(".")[3] for name in content if name.startswith("text_model.encoder.layers.")})
    width = content[f"{open_clip.FINAL_NORM}.weight"].shape[0]
    places = open_clip.openclip_places(depth, width)
    whole: dict[str, Tensor] = {}
    fused: dict[str, dict[int, Tensor]] = {}
    for name, tensor in content.items():
        path, _, parameter = name.rpartition(".")
        if parameter == _POSITION_IDS:
            continue
        own = _own_name(places.get(path), parameter)
        if own is None or not text_encoder.is_text_encoder_path(path):
            raise _foreign(part, name, versions.SD2 if part == TE1 else versions.SDXL)
        place = places[path]
        if place.rows is None:
            whole[own] = tensor.t().contiguous() if place.transposed else tensor
        else:
            fused.setdefault(own, {})[place.rows[0]] = tensor
    for own, thirds in fused.items():
        if len(thirds) != len(open_clip.FUSED):
            raise BadFile(f"{part} has {len(thirds)} of the three projections of {own!r}; give all of them")
        whole[own] = torch.cat([thirds[start] for start in sorted(thirds)])
    return {_PREFIX_OF_TOWER[part] + own: tensor for own, tensor in whole.items()}


def _own_name(place: OpenClipPlace | None, parameter: str) -> str | None:
    own = {"weight": place.weight, "bias": place.bias}.get(parameter) if place is not None else None
    if own is None or place is None:
        return None
    return f"{place.module}.{own}" if place.module else own


def _foreign(part: str, name: str, version: str) -> BadFile:
    title = versions.title(version)
    return BadFile(f"{part} has a tensor {name!r} that no {title} model has; give the right version of the base model")
