"""The whole build: autoencoder, text encoder, UNet, then one checkpoint file in CompVis naming."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path

import torch

from lib_lora.files.checkpoint_convert import parts_to_compvis
from lib_lora.files.tensors import write_tensors
from lib_lora.miniature.build_text import train_text
from lib_lora.miniature.build_unet import train_unet
from lib_lora.miniature.build_vae import fold_norms, soft_norms, train_vae
from lib_lora.miniature.nets import TEXT_CONFIG, new_text_encoder, new_unet, new_vae
from lib_lora.miniature.place import yaml_text
from lib_lora.models.checkpoint_config import TEXT_CONFIG_KEY
from lib_lora.models.tokenizer import write_clip_folder

log = logging.getLogger(__name__)
SEED = 1
VAE_STEPS, TEXT_STEPS, DECODER_STEPS = 900, 500, 400


def build(folder: Path, target: Path, threads: int = 2) -> None:
    """Train every part from the seed and write `target` and its .yaml; `folder` keeps the stages.

    A stage whose file is already in `folder` is not run again, so a build that was stopped goes on.
    """
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    write_clip_folder(folder / "clip", TEXT_CONFIG)
    for name, stage in (
        ("vae", lambda: train_vae(folder, VAE_STEPS, SEED)),
        ("text", lambda: train_text(folder, TEXT_STEPS, SEED + 1)),
        ("unet", lambda: train_unet(folder, SEED + 2)),
        ("decoder", lambda: train_vae(folder, DECODER_STEPS, SEED + 3, decoder_only=True)),
    ):
        done = folder / f"{name}.done"
        if not done.exists():
            log.info("stage %s", name)
            stage()
            done.touch()
    assemble(folder, target)


def assemble(folder: Path, target: Path) -> None:
    """Write the checkpoint (float16, CompVis keys) and its .yaml from the stages in `folder`."""
    vae, text, unet = soft_norms(new_vae()), new_text_encoder(), new_unet()
    for name, module in (("vae", vae), ("text", text), ("unet", unet)):
        module.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
    fold_norms(vae)
    parts = {"unet": unet.state_dict(), "vae": vae.state_dict(), "te1": copy.copy(text.state_dict())}
    state = {
        name: tensor if name.endswith("position_ids") else tensor.half().contiguous()
        for name, tensor in parts_to_compvis(parts).items()
    }
    metadata = {"modelspec.title": "sd-webui-lorakit miniature", TEXT_CONFIG_KEY: json.dumps(TEXT_CONFIG)}
    write_tensors(target, state, metadata)
    target.with_suffix(".yaml").write_text(yaml_text("openai/clip-vit-large-patch14"), encoding="utf-8")
