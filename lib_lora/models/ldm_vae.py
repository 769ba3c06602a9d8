"""ldm's and sgm's autoencoder, run in float32 whatever it is stored in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lib_lora.models.precision import WIDE, device_of

LOGVAR = (-30.0, 20.0)  # what latent diffusion clamps the log-variance to


@torch.no_grad()
def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Mean and standard deviation of the latents, unscaled: (batch, 8, H/8, W/8) for pixels (batch, 3, H, W)."""
    moments = _run(vae.quant_conv, _run(vae.encoder, pixels.to(device_of(vae))))
    mean, logvar = moments.chunk(2, dim=1)
    return torch.cat([mean, torch.exp(0.5 * logvar.clamp(*LOGVAR))], dim=1)


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pixels (batch, 3, H, W) for unscaled latents (batch, 4, H/8, W/8)."""
    return _run(vae.decoder, _run(vae.post_quant_conv, latents.to(device_of(vae))))


def _run(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)` with the parameters' and buffers' float32 copies in their place, if they are stored in less.

    SDXL's autoencoder overflows in fp16. The module itself is not touched, nor can an error leave it changed.
    """
    wide = next((p.dtype for p in module.parameters() if p.dtype in WIDE), torch.float32)
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    copies = {name: t.to(wide) for name, t in named.items() if t.is_floating_point() and t.dtype != wide}
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = functional_call(module, copies, (x.to(wide),))
    return out
