"""Where a live ldm or sgm model keeps the layers that networks name: SD1, SD2 and SDXL as the webui holds them.

Everything is found by structure, as the webui wraps and replaces classes at will.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lib_lora.errors import WrongBaseModel
from lib_lora.keys import versions
from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey
from lib_lora.keys.open_clip import openclip_places
from lib_lora.keys.text_encoder import is_text_encoder_path
from lib_lora.keys.unet import LDM_TO_DIFFUSERS
from lib_lora.ports import Slot

HF, OPEN = "transformers", "open_clip"
# The kinds of a checkpoint's text encoders -> what it is: those in sgm's conditioner, or the one that ldm has.
IN_CONDITIONER = {(HF, OPEN): versions.SDXL, (OPEN,): versions.REFINER}
ALONE = {HF: versions.SD1, OPEN: versions.SD2}


def why_not(model: Any) -> str | None:
    """Why no network can be applied to `model`, as the end of a sentence; None if one can."""
    unet = unet_of(model)
    if not all(hasattr(unet, name) for name in ("input_blocks", "middle_block", "output_blocks")):
        return f"its UNet is a {type(unet).__name__}, not ldm's UNetModel"
    if version_of(model) is None:
        names = ", ".join(type(embedder).__name__ for embedder in embedders(model)) or "missing"
        return f"its text encoders ({names}) are not those of SD 1.x, SD 2.x or SDXL"
    return None


def unet_of(model: Any) -> Any:
    """The UNet, or whatever is in its place."""
    return getattr(getattr(model, "model", None), "diffusion_model", None)


def version_of(model: Any) -> str | None:
    """Which base model the text encoders are those of, or None."""
    kinds = tuple(kind for kind in map(kind_of, embedders(model)) if kind)
    if getattr(model, "conditioner", None) is not None:
        return IN_CONDITIONER.get(kinds)
    return ALONE.get(kinds[0]) if len(kinds) == 1 else None


def text_encoders(model: Any) -> dict[str, Any]:
    """The text encoders by part: transformers' CLIPTextModel or OpenCLIP's CLIP."""
    found = [e for e in embedders(model) if kind_of(e)]
    return {part: e.transformer if kind_of(e) == HF else e.model for part, e in zip((TE1, TE2), found)}


def fused_modules(model: Any) -> set[nn.Module]:
    """Modules inside of torch's fused attention, which uses their weights without calling them."""
    inside = [module for encoder in text_encoders(model).values() for module in encoder.modules()]
    return {child for module in inside if isinstance(module, nn.MultiheadAttention) for child in module.modules()}


class LdmLayers:
    """`ports.Patchable` over the model. Raises WrongBaseModel for one that no network can be applied to.

    `generation` is another number each time weights were loaded into the same objects. A refiner has no layers that
    networks can name.
    """

    def __init__(self, model: Any, generation: int = 0) -> None:
        reason = why_not(model)
        if reason is not None:
            raise WrongBaseModel(
                f"cannot work on this checkpoint: {reason}; load a checkpoint of SD 1.x, SD 2.x or SDXL"
            )
        self.model = model
        self.generation = generation
        self.version = str(version_of(model))
        self._slots: dict[LayerKey, Slot] = {}

    def slots(self) -> Mapping[LayerKey, Slot]:
        """Where each layer's weight and bias are."""
        if not self._slots and self.version != versions.REFINER:
            self._slots.update(_unet_slots(unet_of(self.model)))
            for part, encoder in text_encoders(self.model).items():
                find = _open_clip_slots if _is_open_clip(encoder) else _hf_slots
                self._slots.update(find(part, encoder))
        return self._slots

    def base_identity(self) -> str:
        """Checkpoint file, module objects and load count; not the hash, which may be known only later."""
        info = getattr(self.model, "sd_checkpoint_info", None)
        parts = [unet_of(self.model), *text_encoders(self.model).values()]
        ids = ":".join(f"{id(part):x}" for part in parts)
        return f"{getattr(info, 'filename', None) or 'checkpoint'}:{ids}:{self.generation}"


def embedders(model: Any) -> list[Any]:
    """ldm's or sgm's embedders, out of the wrappers that the webui puts round them."""
    conditioner = getattr(model, "conditioner", None)
    outer = (
        getattr(conditioner, "embedders", ()) if conditioner is not None else [getattr(model, "cond_stage_model", None)]
    )
    return [getattr(embedder, "wrapped", embedder) for embedder in outer]


def kind_of(embedder: Any) -> str | None:
    """Whose text encoder an embedder has, None if it has none (sgm embeds sizes as well)."""
    if hasattr(getattr(embedder, "transformer", None), "text_model"):
        return HF
    return OPEN if _is_open_clip(getattr(embedder, "model", None)) else None


def _is_open_clip(encoder: Any) -> bool:
    blocks = getattr(getattr(encoder, "transformer", None), "resblocks", None)
    return blocks is not None and isinstance(getattr(encoder, "positional_embedding", None), Tensor)


def _unet_slots(unet: nn.Module) -> Iterator[tuple[LayerKey, Slot]]:
    for path, module in unet.named_modules():
        if path in LDM_TO_DIFFUSERS and _has_weight(module):
            yield LayerKey(UNET, LDM_TO_DIFFUSERS[path]), Slot(module)


def _hf_slots(part: str, encoder: nn.Module) -> Iterator[tuple[LayerKey, Slot]]:
    for path, module in encoder.named_modules():
        inner = unwrapped(module)
        if is_text_encoder_path(path) and _has_weight(inner):
            yield LayerKey(part, path), Slot(inner, bias="bias" if hasattr(inner, "bias") else None)


def _open_clip_slots(part: str, encoder: Any) -> Iterator[tuple[LayerKey, Slot]]:
    depth, width = len(encoder.transformer.resblocks), encoder.positional_embedding.shape[1]
    for path, place in openclip_places(depth, width).items():
        module = unwrapped(encoder.get_submodule(place.module))
        if _has_weight(module, place.weight):
            rows = slice(*place.rows) if place.rows is not None else None
            yield LayerKey(part, path), Slot(module, place.weight, place.bias, rows, place.transposed)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module itself, without the webui's token embedding round it."""
    inner = getattr(module, "wrapped", None)
    return inner if isinstance(inner, nn.Module) else module


def _has_weight(module: nn.Module, name: str = "weight") -> bool:
    return isinstance(getattr(module, name, None), Tensor)
