"""A diffusion model made of diffusers' UNet and VAE and transformers' CLIP text encoders: SD1, SD2 or SDXL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.keys import versions
from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey
from lib_lora.keys.text_encoder import PROJECTION
from lib_lora.models import diffusers_session
from lib_lora.models.diffusers_text import text_root, towers_of
from lib_lora.models.schedule import scaled_linear
from lib_lora.models.text import TextReader, Vectors
from lib_lora.ports import PLAIN_TEXT, Conditioning, Slot, TextOptions

__all__ = ["TEXT_PREFIX", "DiffusersModel", "is_layer", "text_root"]
TEXT_PREFIX = "text_model."
PIXELS = 8  # per latent
_NORMS = (nn.LayerNorm, nn.GroupNorm)


def is_layer(module: nn.Module) -> bool:
    """Whether a network can name this module: Linear, Conv2d (or anything shaped like them), or a norm."""
    if isinstance(module, _NORMS):
        return module.weight is not None
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter):
        return False
    linear = weight.dim() == 2 and hasattr(module, "in_features")
    return linear or (weight.dim() == 4 and hasattr(module, "kernel_size"))


def vae_dtype(version: str, dtype: torch.dtype) -> torch.dtype:
    """What a model's VAE computes in, if the rest computes in `dtype`.

    Activations of SDXL's overflow float16, so that latents and pictures would be NaN: it takes float32 there.
    """
    return torch.float32 if version == versions.SDXL and dtype == torch.float16 else dtype


@dataclass
class DiffusersModel:
    """`ports.DiffusionModel` over diffusers modules. `text_encoder_2` (with its projection) is SDXL's only.

    `clip_skip` counts as users do, 1 is the last layer, and is what `TextOptions` leave to the model. As in the webui
    it is SD1's alone: SD2 and SDXL have a layer of their own.
    """

    name: str
    unet: Any = field(repr=False)
    vae: Any = field(repr=False)
    text_encoder: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    identity: str
    source: Path | None = None
    version: str = versions.SD1
    prediction_type: str = "epsilon"
    clip_skip: int = 1
    bars: Tensor = field(default_factory=scaled_linear, repr=False)
    text_encoder_2: Any = field(default=None, repr=False)
    tokenizer_2: Any = field(default=None, repr=False)
    _layers: dict[LayerKey, nn.Module] = field(default_factory=dict, init=False, repr=False)
    _reader: list[TextReader] = field(default_factory=list, init=False, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the UNet computes in."""
        return next(self.unet.parameters()).dtype

    @property
    def text(self) -> TextReader:
        """What reads prompts with this model's text encoders."""
        if not self._reader:
            self._reader.append(TextReader(towers_of(self)))
        return self._reader[0]

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> DiffusersModel:
        """Move or cast all networks, the VAE see `vae_dtype`; returns self."""
        for module in (self.unet, self.text_encoder, self.text_encoder_2):
            if module is not None:
                module.to(device=device, dtype=dtype)
        self.vae.to(device=device, dtype=None if dtype is None else vae_dtype(self.version, dtype))
        return self

    def roots(self) -> Mapping[str, nn.Module]:
        """{"unet": the UNet, "te1": the text encoder, "te2": SDXL's second}."""
        second = {} if self.text_encoder_2 is None else {TE2: self.text_encoder_2}
        return {UNET: self.unet, TE1: self.text_encoder, **second}

    def modules_by_key(self) -> Mapping[LayerKey, nn.Module]:
        """Every layer by canonical key; text-encoder paths start with `text_model.` in every transformers version."""
        if not self._layers:
            self._layers.update(self._named())
        return self._layers

    def _named(self) -> Iterator[tuple[LayerKey, nn.Module]]:
        for part, root in self.roots().items():
            inner, prefix = (root, "") if part == UNET else (text_root(root), TEXT_PREFIX)
            for path, module in inner.named_modules():
                if is_layer(module):
                    yield LayerKey(part, prefix + path), module
            projection = getattr(root, PROJECTION, None)
            if part != UNET and isinstance(projection, nn.Module):
                yield LayerKey(part, PROJECTION), projection

    def slots(self) -> Mapping[LayerKey, Slot]:
        """Where each layer's weight and bias are."""
        return {key: Slot(module) for key, module in self.modules_by_key().items()}

    def encode_text(self, prompts: Sequence[str], options: TextOptions = PLAIN_TEXT) -> Conditioning:
        """See `TextReader.encode`; which layer's states are taken says `diffusers_text`."""
        return self.text.encode(prompts, options)

    def token_vectors(self, text: str) -> Mapping[str, Tensor]:
        """Copies of each text encoder's input embeddings of `text`: {"te1": (tokens, width), ...}."""
        return self.text.token_vectors(text)

    def extra_tokens(self, vectors: Vectors) -> AbstractContextManager[None]:
        """See `TextReader.extra_tokens`."""
        return self.text.extra_tokens(vectors)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(batch, 8, H/8, W/8): mean and std of the latents, both scaled, for pixels in [-1, 1]; in the VAE's dtype."""
        at = next(self.vae.parameters())
        with torch.autocast(at.device.type, enabled=False):
            posterior = self.vae.encode(pixels.to(at.device, at.dtype)).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1) * self.vae.config.scaling_factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels (batch, 3, H, W), about [-1, 1], for scaled latents (batch, 4, H/8, W/8); in the VAE's dtype."""
        at = next(self.vae.parameters())
        with torch.autocast(at.device.type, enabled=False):
            return self.vae.decode(latents.to(at.device, at.dtype) / self.vae.config.scaling_factor).sample

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Conditioning) -> Tensor:
        """The UNet's output, eps or v by `prediction_type`, in `noisy`'s shape and dtype; computed in the UNet's.

        Raises BadConfig where SDXL is not given pooled states.
        """
        at = next(self.unet.parameters())
        given: dict[str, Any] = {"encoder_hidden_states": text.states.to(at.device, at.dtype), "return_dict": False}
        if self.version == versions.SDXL:
            given["added_cond_kwargs"] = self._sizes(noisy, text, at)
        out = self.unet(noisy.to(at.device, at.dtype), timesteps.to(at.device), **given)[0]
        return out.to(noisy.dtype)

    def _sizes(self, noisy: Tensor, text: Conditioning, at: Tensor) -> dict[str, Tensor]:
        """What SDXL's UNet is told beside the states. Sizes stay float32: float16 knows no odd numbers above 2048."""
        if text.pooled is None:
            raise BadConfig(f"{self.name} is SDXL and needs pooled text states; encode the prompts with this model")
        ids = text.time_ids
        if ids is None:
            height, width = (PIXELS * side for side in noisy.shape[-2:])
            ids = torch.tensor([[height, width, 0, 0, height, width]]).expand(len(noisy), 6)
        return {"text_embeds": text.pooled.to(at.device, at.dtype), "time_ids": ids.to(at.device, torch.float32)}

    def training_session(
        self, gradient_checkpointing: bool = False, attention: str = "auto"
    ) -> AbstractContextManager[str]:
        """See `diffusers_session.training_session`."""
        roots = self.roots().values()
        return diffusers_session.training_session(self.unet, roots, gradient_checkpointing, attention)

    def alphas_cumprod(self) -> Tensor:
        """alpha_bar (1000,) float64."""
        return self.bars

    def base_identity(self) -> str:
        """Changes whenever other base weights are loaded."""
        return self.identity
