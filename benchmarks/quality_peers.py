"""The same budget by the peers: diffusers with peft, and LyCORIS, in a plain loop over the same pictures.

What diffusers' training scripts do step by step (noise, timestep, min-SNR weight, AdamW, clipping, cosine rate), with
the same rank, layers, rate, batch and steps as ours; each peer attaches, initialises and saves its own way.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.quality_methods import BATCH, COMMON, DECAY, GAMMA, METHODS, WARMUP, Order
from lib_lora.files.tensors import read_tensors
from lib_lora.train.images import open_picture

PEERS: Mapping[str, str] = {  # by the method of ours that each is compared with
    "peft lora": "lora",
    "peft dora": "dora",
    "lycoris lora": "lora",
    "lycoris loha": "loha",
    "lycoris lokr": "lokr",
}
# The 192 layers that ours and kohya train.
LINEARS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
ATTENTION = ["Transformer2DModel"]
CONVOLUTIONS = ["ResnetBlock2D", "Downsample2D", "Upsample2D"]


def train_peer(model: Any, name: str, order: Order) -> float:
    """Train by a peer on a copy of `model`'s UNet; the file is trained.safetensors. Returns the last step's loss."""
    unet = copy.deepcopy(model.unet)
    order.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(order.seed)
    network = None
    if name.startswith("peft"):
        _peft_layers(unet, dora=name.endswith("dora"))
        chosen = [p for p in unet.parameters() if p.requires_grad]
    else:
        network = _lycoris(unet, name.split()[1], {**COMMON, **METHODS[PEERS[name]].settings})
        chosen = list(network.parameters())
    loss = _loop(unet, _cached(model, order), chosen, order)
    file = order.folder / "trained.safetensors"
    if network is not None:
        network.save_weights(str(file), torch.float16, None)
    else:
        _save_peft(unet, file)
    return loss


def _peft_layers(unet: Any, dora: bool) -> None:
    from peft import LoraConfig

    unet.requires_grad_(False)
    rank, alpha = COMMON["network.rank"], COMMON["network.alpha"]
    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(LINEARS), use_dora=dora)
    )


def _save_peft(unet: Any, file: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(str(file.parent), unet_lora_layers=layers, weight_name=file.name)


def _lycoris(unet: Any, algo: str, settings: Mapping[str, Any]) -> Any:
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    from lycoris import LycorisNetwork, create_lycoris

    unet.requires_grad_(False)
    modules = ATTENTION if algo == "lora" else ATTENTION + CONVOLUTIONS
    before = LycorisNetwork.LORA_PREFIX
    LycorisNetwork.apply_preset({"target_module": modules, "target_name": [], "lora_prefix": "lora_unet"})
    try:
        network = create_lycoris(
            unet,
            1.0,
            linear_dim=settings["network.rank"],
            linear_alpha=settings["network.alpha"],
            algo=algo,
            conv_dim=settings["network.conv_rank"],
            conv_alpha=settings["network.conv_alpha"],
            factor=settings.get("network.factor", -1),
        )
    finally:
        LycorisNetwork.LORA_PREFIX = before  # of the class: it would last for whoever comes next
    network.apply_to()
    network.train()
    return network


def _loop(unet: Any, data: tuple[Tensor, Tensor], chosen: list[Any], order: Order) -> float:
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from torch.nn.functional import mse_loss

    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    ratio = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    moments, texts = data
    optimizer = torch.optim.AdamW(chosen, lr=order.rate, weight_decay=DECAY)
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=WARMUP, num_training_steps=order.steps)
    queue: list[int] = []
    value = 0.0
    for _ in range(order.steps):
        while len(queue) < BATCH:
            queue += torch.randperm(len(texts)).tolist()
        batch, queue = queue[:BATCH], queue[BATCH:]
        mean, std = moments[batch].chunk(2, dim=1)
        latents = mean + std * torch.randn_like(std)
        noise = torch.randn_like(latents)
        times = torch.randint(0, len(ratio), (BATCH,))
        noisy = schedule.add_noise(latents, noise, times)
        output = unet(noisy, times, encoder_hidden_states=texts[batch], return_dict=False)[0]
        weights = ratio[times].clamp(max=GAMMA) / ratio[times]
        loss = (mse_loss(output, noise, reduction="none").flatten(1).mean(1) * weights).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(chosen, 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad(set_to_none=True)
        value = float(loss.detach())
    return value


def _cached(model: Any, order: Order) -> tuple[Tensor, Tensor]:
    """(moments of the latents, text states) of every picture, kept beside our own latents."""
    kept = order.latents / "peers.safetensors"
    if not kept.is_file():
        moments, texts = [], []
        for path in sorted(order.pictures.glob("*.png")):
            pixels = torch.from_numpy(np.asarray(open_picture(path).convert("RGB"), np.float32) / 127.5 - 1)
            with torch.no_grad():
                moments.append(model.encode_image(pixels.permute(2, 0, 1)[None]))
                texts.append(model.encode_text([path.with_suffix(".txt").read_text(encoding="utf-8")]).states)
        order.latents.mkdir(parents=True, exist_ok=True)
        fresh = kept.with_suffix(f".{os.getpid()}.tmp")
        save_file({"moments": torch.cat(moments), "texts": torch.cat(texts)}, fresh)
        fresh.replace(kept)
    tensors = read_tensors(kept)
    return tensors["moments"], tensors["texts"]
