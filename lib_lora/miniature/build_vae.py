"""First stage of building the miniature: the autoencoder, trained on crops of drawings and textures."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib_lora.miniature.draw import noise, render
from lib_lora.miniature.nets import VAE_CONFIG, new_vae
from lib_lora.miniature.scenes import draw_lots

log = logging.getLogger(__name__)
SCALING = VAE_CONFIG["scaling_factor"]
ROUGHNESS = 0.2


def picture_pool(count: int, seed: int) -> Tensor:
    """(count, 3, 128, 128) uint8: drawings at several zooms, one in eight coloured fractal noise."""
    rng = random.Random(seed)
    pictures = []
    for i in range(count):
        if i % 8 == 7:
            gen = np.random.default_rng(rng.getrandbits(32))
            cells = (3, 8, 20) if i % 16 == 7 else (2, 4, 9)
            base, spread = gen.uniform(40, 215, 3), gen.uniform(-120, 120, (2, 3))
            a, b = noise(gen, 128, cells), noise(gen, 128, cells)
            pixels = base + (a[..., None] - 0.5) * spread[0] + (b[..., None] - 0.5) * spread[1]
            pictures.append(pixels.clip(0, 255).astype(np.uint8))
        else:
            size = rng.choice((64, 96, 128, 128, 192, 256))
            full = np.asarray(render(draw_lots(rng, toys=0.4), size, rng.getrandbits(32)))
            if size < 128:
                full = np.tile(full, (2, 2, 1))
            y, x = rng.randint(0, full.shape[0] - 128), rng.randint(0, full.shape[1] - 128)
            pictures.append(full[y : y + 128, x : x + 128])
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def crops(pool: Tensor, batch: int, side: int, gen: torch.Generator) -> Tensor:
    """(batch, 3, side, side) float32 in [-1, 1], from random places, half of them mirrored."""
    out = []
    for i in torch.randint(len(pool), (batch,), generator=gen).tolist():
        y, x = torch.randint(128 - side + 1, (2,), generator=gen).tolist()
        crop = pool[i, :, y : y + side, x : x + side]
        out.append(crop.flip(2) if torch.rand((), generator=gen) < 0.5 else crop)
    return torch.stack(out).float() / 127.5 - 1


def soft_norms(vae: Any) -> Any:
    """The VAE with every GroupNorm's epsilon at 1, for training only; `fold_norms` undoes it exactly.

    With 64 channels in 32 groups a flat picture's colour does not survive a plain GroupNorm: only the sign of
    the difference of two channels does. A large epsilon leaves the size of small signals alone.
    """
    for module in vae.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = 1.0
    return vae


@torch.no_grad()
def start_from_averages(vae: Any) -> None:
    """Initialise so that the VAE already passes each 8x8 block's mean colour; training adds what is missing.

    A colour c travels as the pair (c, -c) in two neighbouring channels: a pair has mean 0 in its norm group, and
    silu(z) - silu(-z) = z, so the last norm and activation of either half let it through.
    """
    modules: list[tuple[str, Any]] = [*vae.encoder.named_modules(), *vae.decoder.named_modules()]
    for name, module in modules:
        if name.endswith((".conv2", "to_out.0")):
            module.weight *= 0.3
            module.weight[:6] *= 0.1
            module.bias.zero_()
        elif hasattr(module, "kernel_size") and ("conv_shortcut" in name or "samplers" in name):
            module.weight[:6] = 0
            module.bias[:6] = 0
            for c in range(6):
                if "downsamplers" in name:
                    module.weight[c, c, :2, :2] = 0.25
                else:
                    module.weight[c, c, module.kernel_size[0] // 2, module.kernel_size[1] // 2] = 1
    for half in (vae.encoder, vae.decoder):
        half.conv_in.weight[:6] = 0
        half.conv_in.bias[:6] = 0
        half.conv_out.weight[:3] *= 0.3
        half.conv_out.bias[:3] = 0
        for c in range(3):
            half.conv_in.weight[2 * c, c, 1, 1], half.conv_in.weight[2 * c + 1, c, 1, 1] = 1, -1
            half.conv_out.weight[c, 2 * c, 1, 1], half.conv_out.weight[c, 2 * c + 1, 1, 1] = 1.3, -1.3
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.copy_(torch.eye(conv.weight.shape[0])[:, :, None, None])
        conv.bias.zero_()
    vae.quant_conv.bias[4:] = -3.0  # the posterior starts narrow


@torch.no_grad()
def fold_norms(vae: Any, eps: float = 1e-6) -> None:
    """Back to the standard epsilon with the same function: GN(x; 1) = GN(k x; eps) with k = sqrt(eps).

    So whatever a GroupNorm reads is scaled by k: outputs of convolutions that follow a norm get k in weight and
    bias, convolutions on the residual stream (shortcuts, resampling) keep their weight and get k in the bias.
    """
    k = eps**0.5
    for half in (vae.encoder, vae.decoder):
        for name, module in half.named_modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.eps = eps
            elif isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                on_stream = "conv_shortcut" in name or "samplers" in name
                after_norm = name.endswith((".conv1", ".conv2", "to_out.0")) or name == "conv_in"
                if after_norm:
                    module.weight *= k
                if (after_norm or on_stream) and module.bias is not None:
                    module.bias *= k


def edge_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and vertical steps: keeps outlines sharp."""
    dx = (a.diff(dim=3) - b.diff(dim=3)).abs().mean()
    return dx + (a.diff(dim=2) - b.diff(dim=2)).abs().mean()


def train_vae(folder: Path, steps: int, seed: int, *, decoder_only: bool = False) -> None:
    """Train (or, with `decoder_only`, refine behind a fixed encoder) and leave `folder/vae.pt`.

    Refining adds noise of up to `ROUGHNESS` (1 = the latents' deviation), since latents that a UNet made have some.
    """
    torch.manual_seed(seed)
    vae = soft_norms(new_vae())
    start_from_averages(vae)
    target = folder / "vae.pt"
    if decoder_only:
        vae.load_state_dict(torch.load(target, weights_only=True))
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    vae = vae.to(memory_format=torch.channels_last)
    params = [p for p in vae.parameters() if p.requires_grad]
    peak = 4e-4 if decoder_only else 8e-4
    optimizer = torch.optim.AdamW(params, lr=peak, betas=(0.9, 0.98), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, steps, pct_start=0.05, final_div_factor=20)
    gen = torch.Generator().manual_seed(seed)
    pool = picture_pool(4096, seed)
    for step in range(1, steps + 1):
        images = crops(pool, 8, 64, gen).to(memory_format=torch.channels_last)
        with torch.set_grad_enabled(not decoder_only):
            posterior = vae.encode(images).latent_dist
        mean, logvar = posterior.mean, posterior.logvar
        spread = (0.5 * logvar).exp()
        if decoder_only:
            spread = ROUGHNESS / SCALING * torch.rand(len(images), 1, 1, 1, generator=gen)
        decoded = vae.decode(mean + torch.randn(mean.shape, generator=gen) * spread).sample
        kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()
        mse, mae = (decoded - images).pow(2).mean(), (decoded - images).abs().mean()
        loss = mse + 0.5 * mae + 0.5 * edge_loss(decoded, images) + 2e-4 * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            psnr = -10 * torch.log10(mse.detach() / 4)
            log.info("vae %d/%d loss %.4f psnr %.1f dB latent std %.2f", step, steps, loss, psnr, mean.detach().std())
            torch.save(vae.state_dict(), target)
    if not decoder_only:
        normalise_latents(vae, pool[:256])
    torch.save(vae.state_dict(), target)


@torch.no_grad()
def normalise_latents(vae: Any, pictures: Tensor) -> None:
    """Shift and scale each latent channel so that SD1's factor 0.18215 gives mean 0 and deviation 1.

    The change goes into the 1x1 convolutions on either side of the latent; what is decoded stays the same.
    """
    means = [vae.encode(p[None].float() / 127.5 - 1).latent_dist.mean for p in pictures]
    latents = torch.cat(means).transpose(0, 1).flatten(1)
    shift, scale = latents.mean(1), 1 / (SCALING * latents.std(1))
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] *= scale[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - shift) * scale
    quant.bias[4:] += 2 * scale.log()
    quant_before = post.weight.clone()
    post.weight /= scale[None, :, None, None]
    post.bias += (quant_before[:, :, 0, 0] * shift[None, :]).sum(1)
