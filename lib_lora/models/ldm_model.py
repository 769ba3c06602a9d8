"""A DiffusionModel over ldm modules: the CompVis LatentDiffusion that the webui loads, found by duck typing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora.errors import WrongBaseModel
from lib_lora.keys import versions
from lib_lora.keys.layer_key import TE1, UNET, LayerKey
from lib_lora.models import ldm_layers, ldm_session
from lib_lora.models.diffusers_model import is_layer
from lib_lora.models.ldm_layers import LdmLayers
from lib_lora.models.tokenizer import TOKENS
from lib_lora.ports import Slot

PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}


def why_not(model: Any) -> str | None:
    """Why `model` is not one this class can handle, as the end of a sentence; None if it can."""
    reason = ldm_layers.why_not(model)
    if reason is not None:
        return reason
    version = str(ldm_layers.version_of(model))
    if version != versions.SD1:
        return f"it is {versions.title(version)}, and training works on SD 1.x only"
    kind = getattr(model, "parameterization", "eps")
    return None if kind in PREDICTIONS else f"it predicts {kind!r}, neither eps nor v"


class LdmModel:
    """SD1 in ldm's classes. `model` has `.model.diffusion_model`, `.cond_stage_model` and `.first_stage_model`.

    `generation` is counted up by the owner each time weights are loaded into the same module objects. `clip_skip`
    counts as in the webui: 1 is the last layer. Raises WrongBaseModel for any other kind of model.
    """

    version = "sd1"

    def __init__(self, model: Any, generation: int = 0, clip_skip: int = 1) -> None:
        reason = why_not(model)
        if reason is not None:
            raise WrongBaseModel(f"cannot work on this checkpoint: {reason}; load a Stable Diffusion 1.x checkpoint")
        self.model = model
        self.generation = generation
        self.clip_skip = clip_skip
        self.layers = LdmLayers(model, generation)
        self.unet: Any = ldm_layers.unet_of(model)
        outer = model.cond_stage_model
        self.embedder: Any = getattr(outer, "wrapped", outer)
        info = getattr(model, "sd_checkpoint_info", None)
        self.name = str(getattr(info, "name_for_extra", None) or "checkpoint")
        self.prediction_type = PREDICTIONS[getattr(model, "parameterization", "eps")]
        self._modules: dict[LayerKey, nn.Module] = {}

    def roots(self) -> Mapping[str, nn.Module]:
        """The UNet and the HF text encoder."""
        return {UNET: self.unet, TE1: self.embedder.transformer}

    def modules_by_key(self) -> Mapping[LayerKey, nn.Module]:
        """Every Linear, Conv2d and norm, ldm's paths translated to diffusers'."""
        if not self._modules:
            self._modules.update((key, slot.module) for key, slot in self.slots().items() if is_layer(slot.module))
        return self._modules

    def slots(self) -> Mapping[LayerKey, Slot]:
        """Where each layer's weight and bias are."""
        return self.layers.slots()

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Text states (batch, 77, width), one window: longer prompts are cut. No emphasis, text is taken literally."""
        transformer = self.embedder.transformer
        tokens = torch.tensor([self._tokens(prompt) for prompt in prompts], device=_device(transformer))
        with _precision(transformer):
            out = transformer(input_ids=tokens, output_hidden_states=self.clip_skip > 1)
            if self.clip_skip > 1:
                return transformer.text_model.final_layer_norm(out.hidden_states[-self.clip_skip])
            return out.last_hidden_state

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Mean and std of the latents, scaled, (batch, 8, H/8, W/8), float32."""
        vae = self.model.first_stage_model
        weight = next(vae.parameters())
        with torch.no_grad():
            posterior = vae.encode(pixels.to(weight.device, weight.dtype))
            return torch.cat([posterior.mean, posterior.std], dim=1).float() * self._scale()

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels in [-1, 1], float32."""
        vae = self.model.first_stage_model
        weight = next(vae.parameters())
        with torch.no_grad():
            return vae.decode((latents / self._scale()).to(weight.device, weight.dtype)).float()

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The raw UNet's output in `noisy`'s dtype; the webui's own denoiser and its options are not involved."""
        dtype = _compute_dtype(self.unet)
        device = _device(self.unet)
        with _precision(self.unet):
            out = self.unet(noisy.to(device, dtype), timesteps.to(device), context=text.to(device, dtype))
        return out.to(noisy.dtype)

    def alphas_cumprod(self) -> Tensor:
        """ldm's schedule as the checkpoint has it, (1000,) float32."""
        original = getattr(self.model, "alphas_cumprod_original", None)  # the webui alters the other per picture
        return (self.model.alphas_cumprod if original is None else original).detach().float()

    def base_identity(self) -> str:
        """See `LdmLayers`."""
        return self.layers.base_identity()

    @contextmanager
    def training_session(self, gradient_checkpointing: bool = False) -> Iterator[None]:
        """See `ldm_session.training_session`; covers UNet, text encoder and VAE."""
        with ldm_session.training_session(self.model, gradient_checkpointing):
            yield

    def _tokens(self, prompt: str) -> list[int]:
        """Begin, at most 75 tokens, end up to the window: SD1 pads with the end token."""
        tokenizer = self.embedder.tokenizer
        ids = tokenizer([prompt], truncation=False, add_special_tokens=False)["input_ids"][0][: TOKENS - 2]
        return [tokenizer.bos_token_id, *ids, *[tokenizer.eos_token_id] * (TOKENS - 1 - len(ids))]

    def _scale(self) -> float:
        return float(self.model.scale_factor)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _compute_dtype(unet: Any) -> torch.dtype:
    """The dtype of the UNet's activations; 8-bit storage does not tell it, ldm's own attribute does."""
    stored = next(unet.parameters()).dtype
    return stored if stored.itemsize > 1 else unet.dtype


def _precision(module: nn.Module) -> AbstractContextManager[Any]:
    """Autocast where weights are half or 8-bit: norms in float32, adapters in float32 beside them."""
    weight = next(module.parameters())
    if weight.dtype in (torch.float32, torch.float64):
        return nullcontext()
    dtype = torch.bfloat16 if weight.dtype == torch.bfloat16 or weight.device.type == "cpu" else torch.float16
    return torch.autocast(weight.device.type, dtype=dtype)
