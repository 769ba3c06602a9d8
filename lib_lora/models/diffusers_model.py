"""A diffusion model made of diffusers' UNet and VAE and transformers' CLIP text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora.keys.layer_key import TE1, UNET, LayerKey
from lib_lora.models.schedule import scaled_linear
from lib_lora.models.tokenizer import TOKENS
from lib_lora.ports import Slot

TEXT_PREFIX = "text_model."
_NORMS = (nn.LayerNorm, nn.GroupNorm)


def text_root(text_encoder: nn.Module) -> nn.Module:
    """The module whose children are `embeddings`, `encoder`, `final_layer_norm`.

    transformers before 5 keeps it in `.text_model`; from 5 on the `CLIPTextModel` is that module itself.
    """
    inner = getattr(text_encoder, "text_model", None)
    return inner if isinstance(inner, nn.Module) else text_encoder


def is_layer(module: nn.Module) -> bool:
    """Whether a network can name this module: Linear, Conv2d (or anything shaped like them), or a norm."""
    if isinstance(module, _NORMS):
        return module.weight is not None
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter):
        return False
    linear = weight.dim() == 2 and hasattr(module, "in_features")
    return linear or (weight.dim() == 4 and hasattr(module, "kernel_size"))


@dataclass
class DiffusersModel:
    """`ports.DiffusionModel` over diffusers modules. `clip_skip` counts as users do: 1 is the last layer."""

    name: str
    unet: Any = field(repr=False)
    vae: Any = field(repr=False)
    text_encoder: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    identity: str
    version: str = "sd1"
    prediction_type: str = "epsilon"
    clip_skip: int = 1
    bars: Tensor = field(default_factory=scaled_linear, repr=False)
    _layers: dict[LayerKey, nn.Module] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the UNet computes in."""
        return next(self.unet.parameters()).dtype

    def to(self, *args: Any, **kwargs: Any) -> DiffusersModel:
        """Move or cast all three networks, as `nn.Module.to`; returns self."""
        for module in (self.unet, self.vae, self.text_encoder):
            module.to(*args, **kwargs)
        return self

    def roots(self) -> Mapping[str, nn.Module]:
        """{"unet": the UNet, "te1": the text encoder}."""
        return {UNET: self.unet, TE1: self.text_encoder}

    def modules_by_key(self) -> Mapping[LayerKey, nn.Module]:
        """Every layer by canonical key; text-encoder paths start with `text_model.` in every transformers version."""
        if not self._layers:
            for path, module in self.unet.named_modules():
                if is_layer(module):
                    self._layers[LayerKey(UNET, path)] = module
            for path, module in text_root(self.text_encoder).named_modules():
                if is_layer(module):
                    self._layers[LayerKey(TE1, TEXT_PREFIX + path)] = module
        return self._layers

    def slots(self) -> Mapping[LayerKey, Slot]:
        """Where each layer's weight and bias are."""
        return {key: Slot(module) for key, module in self.modules_by_key().items()}

    def token_ids(self, prompts: Sequence[str]) -> Tensor:
        """(batch, 77) int64: start, words, end, then end tokens as padding; longer texts are cut."""
        batch = self.tokenizer(
            list(prompts), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        )
        return batch.input_ids

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Text states (batch, 77, width) after the final layer norm."""
        root: Any = text_root(self.text_encoder)
        ids = self.token_ids(prompts).to(next(root.parameters()).device)
        if self.clip_skip <= 1:
            return self.text_encoder(ids).last_hidden_state
        states = self.text_encoder(ids, output_hidden_states=True).hidden_states
        return root.final_layer_norm(states[-self.clip_skip])

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(batch, 8, H/8, W/8): mean and std of the latents, both scaled, for pixels in [-1, 1]."""
        at = next(self.vae.parameters())
        posterior = self.vae.encode(pixels.to(at.device, at.dtype)).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1) * self.vae.config.scaling_factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels (batch, 3, H, W), about [-1, 1], for scaled latents (batch, 4, H/8, W/8)."""
        at = next(self.vae.parameters())
        return self.vae.decode(latents.to(at.device, at.dtype) / self.vae.config.scaling_factor).sample

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The UNet's output, eps or v by `prediction_type`, in `noisy`'s shape and dtype; computed in the UNet's."""
        at = next(self.unet.parameters())
        states = text.to(at.device, at.dtype)
        out = self.unet(noisy.to(at.device, at.dtype), timesteps, encoder_hidden_states=states, return_dict=False)[0]
        return out.to(noisy.dtype)

    def alphas_cumprod(self) -> Tensor:
        """alpha_bar (1000,) float64."""
        return self.bars

    def base_identity(self) -> str:
        """Changes whenever other base weights are loaded."""
        return self.identity
