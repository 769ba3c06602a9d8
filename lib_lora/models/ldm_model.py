"""A DiffusionModel over the live modules of ldm and sgm: SD1, SD2 and SDXL as the webui loads them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig, WrongBaseModel
from lib_lora.keys import versions
from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.models import ldm_layers, ldm_session, ldm_vae
from lib_lora.models.diffusers_model import is_layer
from lib_lora.models.ldm_layers import LdmLayers
from lib_lora.models.ldm_text import towers_of
from lib_lora.models.precision import device_of, precision, stored_dtype
from lib_lora.models.schedule import zero_terminal
from lib_lora.models.text import TextReader
from lib_lora.ports import PLAIN_TEXT, Conditioning, Slot, TextOptions

PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}
TRAINABLE = (versions.SD1, versions.SD2, versions.SDXL)
# What UNets with more than the latents' 4 channels at their entry are made for.
ENTRIES = {5: "a depth", 8: "an instruct-pix2pix", 9: "an inpainting"}
SCALE = 8  # pixels to a latent's side
TIME_IDS = 6


def why_not(model: Any) -> str | None:
    """Why `model` cannot be trained on, as the end of a sentence with the way out; None if it can."""
    reason = ldm_layers.why_not(model)
    if reason is not None:
        return f"{reason}; load a base checkpoint of SD 1.x, SD 2.x or SDXL"
    version = str(ldm_layers.version_of(model))
    if version not in TRAINABLE:
        return "it is SDXL's refiner; train on the base model, whose networks the refiner does not need"
    unet = ldm_layers.unet_of(model)
    channels = int(unet.input_blocks[0][0].weight.shape[1])
    if channels != 4:
        kind = ENTRIES.get(channels, "another kind of")
        return (
            f"it is {kind} model, whose UNet takes {channels} channels and not the 4 of a latent picture; train on the "
            f"base checkpoint it was made from, the network works on both"
        )
    if (getattr(unet, "num_classes", None) is not None) != (version == versions.SDXL):
        return "its UNet wants other conditions than the text (unCLIP); load a base checkpoint"
    kind = getattr(model, "parameterization", "eps")
    return None if kind in PREDICTIONS else f"it predicts {kind!r}; load a checkpoint that predicts eps or v"


class LdmModel:
    """`ports.DiffusionModel` over ldm's LatentDiffusion (SD1, SD2) or sgm's DiffusionEngine (SDXL), by structure.

    `generation` is counted up by the owner each time weights are loaded into the same module objects. `clip_skip`
    counts as in the webui: 1 is the last layer, 0 what the model says; it concerns transformers' CLIP. With
    `zero_terminal` the noise schedule ends in noise alone. Raises WrongBaseModel for any other kind of model.
    """

    def __init__(self, model: Any, generation: int = 0, clip_skip: int = 0) -> None:
        reason = why_not(model)
        if reason is not None:
            raise WrongBaseModel(f"cannot train on this checkpoint: {reason}")
        self.model = model
        self.generation = generation
        self.clip_skip = clip_skip
        self.zero_terminal = False
        self.layers = LdmLayers(model, generation)
        self.version = self.layers.version
        self.unet: Any = ldm_layers.unet_of(model)
        info = getattr(model, "sd_checkpoint_info", None)
        filename = getattr(info, "filename", None)
        self.source = Path(filename) if filename else None
        self.name = str(getattr(info, "name_for_extra", None) or "checkpoint")
        self.prediction_type = PREDICTIONS[getattr(model, "parameterization", "eps")]
        self._modules: dict[LayerKey, nn.Module] = {}

    @cached_property
    def reader(self) -> TextReader:
        """What reads prompts with the text encoders."""
        return TextReader(towers_of(self.model, self.version, lambda: self.clip_skip))

    def roots(self) -> Mapping[str, nn.Module]:
        """The UNet and the text encoders."""
        return {UNET: self.unet, **ldm_layers.text_encoders(self.model)}

    def modules_by_key(self) -> Mapping[LayerKey, nn.Module]:
        """Every Linear, Conv2d and norm that is called as a module of its own, ldm's paths translated to diffusers'.

        The projections of OpenCLIP's attention are none, not even the one out of it: their weights are used past them.
        """
        if not self._modules:
            fused = ldm_layers.fused_modules(self.model)
            for key, slot in self.slots().items():
                if slot.rows is None and slot.module not in fused and is_layer(slot.module):
                    self._modules[key] = slot.module
        return self._modules

    def slots(self) -> Mapping[LayerKey, Slot]:
        """Where each layer's weight and bias are."""
        return self.layers.slots()

    def encode_text(self, prompts: Sequence[str], options: TextOptions = PLAIN_TEXT) -> Conditioning:
        """Text states as the webui makes them, (batch, 77 * windows, width); for SDXL with the pooled ones."""
        return self.reader.encode(prompts, options)

    def token_vectors(self, text: str) -> Mapping[str, Tensor]:
        """See `ports.DiffusionModel`."""
        return self.reader.token_vectors(text)

    def extra_tokens(self, vectors: Mapping[str, Mapping[str, Tensor]]) -> AbstractContextManager[None]:
        """See `ports.DiffusionModel`; the webui's own embeddings are neither read nor changed."""
        return self.reader.extra_tokens(vectors)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Mean and std of the latents, scaled, (batch, 8, H/8, W/8), computed in float32."""
        return ldm_vae.encode(self.model.first_stage_model, pixels) * self._scale()

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels in [-1, 1], float32."""
        return ldm_vae.decode(self.model.first_stage_model, latents / self._scale())

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Conditioning) -> Tensor:
        """The raw UNet's output in `noisy`'s dtype; the webui's own denoiser and its options are not involved."""
        device, dtype = device_of(self.unet), stored_dtype(self.unet)
        given = {"context": text.states.to(device, dtype)}
        if self.version == versions.SDXL:
            given["y"] = self._vector(text, noisy).to(device, dtype)
        with precision(self.unet):
            out = self.unet(noisy.to(device, dtype), timesteps.to(device), **given)
        result: Tensor = out.to(noisy.dtype)
        return result

    def alphas_cumprod(self) -> Tensor:
        """The schedule as the checkpoint has it, (1000,) float32, or rescaled to end in noise alone."""
        bars = _schedule_of(self.model)
        return zero_terminal(bars) if self.zero_terminal else bars

    def base_identity(self) -> str:
        """See `LdmLayers`."""
        return self.layers.base_identity()

    @contextmanager
    def training_session(self, gradient_checkpointing: bool = False, attention: str = "auto") -> Iterator[None]:
        """See `ldm_session.training_session`; covers UNet, text encoders and VAE."""
        with ldm_session.training_session(self.model, gradient_checkpointing, attention):
            yield

    def _vector(self, text: Conditioning, noisy: Tensor) -> Tensor:
        """SDXL's y (batch, pooled width + 6 n): the pooled text states, and each number of `time_ids` on waves."""
        if text.pooled is None:
            raise BadConfig("SDXL needs pooled text states as well; give the Conditioning that encode_text returned")
        ids = text.time_ids
        if ids is None:
            height, width = (SCALE * side for side in noisy.shape[-2:])
            ids = torch.tensor([[height, width, 0, 0, height, width]]).expand(len(noisy), TIME_IDS)
        width = (int(self.unet.label_emb[0][0].weight.shape[1]) - text.pooled.shape[1]) // TIME_IDS
        return torch.cat([text.pooled.float(), waves(ids.to(text.pooled.device), width).flatten(1)], dim=1)

    def _scale(self) -> float:
        return float(self.model.scale_factor)


def _schedule_of(model: Any) -> Tensor:
    """alpha_bar as the checkpoint has it; the webui alters `alphas_cumprod` for each picture."""
    original = getattr(model, "alphas_cumprod_original", None)
    bars: Tensor = model.alphas_cumprod if original is None else original
    return bars.detach().float()


def waves(numbers: Tensor, width: int) -> Tensor:
    """cos and sin of x 10000^(-2 i / width), i < width / 2, behind each other: (..., width) float32."""
    half = width // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=numbers.device) / half)
    angles = numbers.float()[..., None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
