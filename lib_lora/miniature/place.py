"""Where the shipped miniature lies, and how it is put before a webui."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from lib_lora.miniature.nets import TEXT_CONFIG, UNET_CONFIG, VAE_CONFIG

NAME = "lorakit-miniature"


def checkpoint_path() -> Path:
    """The shipped checkpoint."""
    return Path(__file__).with_name("miniature.safetensors")


def yaml_text(clip_folder: str) -> str:
    """The webui's settings of the miniature; `clip_folder` is what its text encoder's `version` names."""
    channels = UNET_CONFIG["block_out_channels"]
    mult = [c // channels[0] for c in channels]
    vae = VAE_CONFIG["block_out_channels"]
    return f"""model:
  base_learning_rate: 1.0e-04
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: 64
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/simple_loss_ema
    scale_factor: {VAE_CONFIG["scaling_factor"]}
    use_ema: False
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 32
        in_channels: 4
        out_channels: 4
        model_channels: {channels[0]}
        attention_resolutions: [4, 2, 1]
        num_res_blocks: 2
        channel_mult: {mult}
        num_heads: {UNET_CONFIG["attention_head_dim"]}
        use_spatial_transformer: True
        transformer_depth: 1
        context_dim: {UNET_CONFIG["cross_attention_dim"]}
        use_checkpoint: True
        legacy: False
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: {vae[0]}
          ch_mult: {[c // vae[0] for c in vae]}
          num_res_blocks: 2
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: {clip_folder}
"""


def export(folder: Path) -> Path:
    """Put checkpoint, .yaml and CLIP folder into a webui's checkpoint folder; returns the checkpoint's path.

    The webui wants an absolute path in the .yaml, so the three belong where they are written. `folder` is made
    if it is missing; files of the same names are replaced.
    """
    from lib_lora.models.tokenizer import write_clip_folder

    folder.mkdir(parents=True, exist_ok=True)
    clip = write_clip_folder(folder.resolve() / f"{NAME}-clip", TEXT_CONFIG)
    target = folder / f"{NAME}.safetensors"
    _replace(target, checkpoint_path())
    settings = target.with_suffix(".yaml")
    handle, temp = tempfile.mkstemp(dir=folder, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(yaml_text(clip.as_posix()))
    os.replace(temp, settings)
    return target


def _replace(target: Path, source: Path) -> None:
    handle, temp = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
    os.close(handle)
    shutil.copyfile(source, temp)
    os.replace(temp, target)
