"""Modules made without memory, and the tensors of a file put into them one by one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora.errors import BadFile
from lib_lora.keys.checkpoint import VAE
from lib_lora.keys.layer_key import TE1, TE2, UNET
from lib_lora.models.diffusers_text import text_root

log = logging.getLogger(__name__)
TEXT_PREFIX = "text_model."


@dataclass
class Frame:
    """A module of meta tensors and what it is filled with. `what` names it in errors.

    Names are those of `root`'s state dict; `prefix` is what a file has before them.
    """

    module: Any
    what: str
    root: nn.Module
    prefix: str = ""
    given: dict[str, Tensor] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    expected: dict[str, torch.Size] = field(init=False)

    def __post_init__(self) -> None:
        self.expected = {name: tensor.shape for name, tensor in self.root.state_dict().items()}

    def take(self, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        """Keep a tensor for the parameter `name`, in memory of its own."""
        name = name.removeprefix(self.prefix)
        shape = self.expected.get(name)
        if shape is None:
            if not name.endswith("position_ids"):
                self.unknown.append(name)
            return
        if tensor.numel() == shape.numel() and tensor.dim() != len(shape):
            tensor = tensor.reshape(shape)  # ldm keeps the VAE's attention as 1x1 convolutions
        if tensor.shape != shape:
            self.wrong.append(f"{name} is {tuple(tensor.shape)} where {tuple(shape)} was expected")
        kept = tensor.to(device, dtype if tensor.is_floating_point() else None)
        shared = kept.untyped_storage().nbytes() > kept.numel() * kept.element_size()
        self.given[name] = kept.contiguous().clone() if shared else kept.contiguous()

    def close(self) -> Any:
        """The module with all it was given, in eval mode and frozen. Raises BadFile naming what lacks or misfits."""
        parameters = {name for name, _ in self.root.named_parameters()}
        missing = sorted(parameters - self.given.keys())
        if missing or self.wrong:
            first = (self.wrong + [f"{name} is missing" for name in missing])[0]
            raise BadFile(
                f"{self.what}: {len(missing)} tensors missing, {len(self.wrong)} misshapen, first {first}; "
                "get a whole file"
            )
        if self.unknown:
            log.warning("%s: %d tensors not used, first %s", self.what, len(self.unknown), self.unknown[0])
        self.root.load_state_dict(self.given, strict=False, assign=True)
        _fill_buffers(self.root)
        return self.module.eval().requires_grad_(False)


def _fill_buffers(module: nn.Module) -> None:
    """Give position numbers that were not in the file their values; no module here has another buffer."""
    for child in module.modules():
        for name, buffer in list(child.named_buffers(recurse=False)):
            if name == "position_ids":
                device = next(module.parameters()).device
                setattr(child, name, torch.arange(buffer.shape[-1], device=device).unsqueeze(0))
            elif buffer.is_meta:
                raise BadFile(f"the buffer {name} of {type(child).__name__} has no value; use the pinned versions")


def module_of(part: str, config: Mapping[str, Any]) -> Any:
    """A module of "unet", "vae", "te1" or "te2" without memory, of which a file overwrites all."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        if part == UNET:
            return UNet2DConditionModel.from_config(dict(config))
        if part == VAE:
            return AutoencoderKL.from_config(dict(config))
        return (CLIPTextModel if part == TE1 else CLIPTextModelWithProjection)(CLIPTextConfig(**config))


def frame_of(part: str, module: Any, file: str) -> Frame:
    """The frame of "unet", "vae", "te1" or "te2".

    transformers' names begin with `text_model.` or not, by its version; files' always do.
    """
    titles = {UNET: "UNet", VAE: "VAE", TE2: "second text encoder"}
    what = f"{file}: {titles.get(part, 'text encoder')}"
    if part == TE1:
        return Frame(module, what, text_root(module), TEXT_PREFIX)
    return Frame(module, what, module)
