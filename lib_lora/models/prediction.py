"""What a UNet's output is, noise (eps) or v: told by the file, found out by trying, or said by the user."""

from __future__ import annotations

import logging

import torch

from lib_lora.errors import BadConfig
from lib_lora.keys import versions
from lib_lora.models.checkpoint_config import EPSILON, V
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.ports import Conditioning

log = logging.getLogger(__name__)
_LAST, _EVEN, _SIDE = 999, 0.5, 8  # the noisiest timestep; what the trial is filled with; its latents' side


def check(prediction_type: str | None) -> None:
    """Raises BadConfig for an unknown one."""
    if prediction_type not in (None, EPSILON, V):
        raise BadConfig(f"prediction type {prediction_type!r} is unknown; use {EPSILON!r} or {V!r}")


def assumed(model: DiffusersModel) -> str:
    """What a model predicts whose file does not tell: SD1 and SDXL eps, as nearly all do; SD2 is tried, and it is said.

    At the noisiest timestep a UNet that predicts noise gives back about what it was given, one that predicts v about
    the negative of the picture behind it. This is the webui's trial, so that both come to the same answer.
    """
    if model.version != versions.SD2:
        return EPSILON
    found = V if _drift(model) < -1 else EPSILON
    log.warning(
        "%s does not say what it predicts; a trial says %s. If its pictures are noise, put a .yaml with "
        "'parameterization: v' (or eps) beside it, or name the prediction type yourself",
        model.name,
        found,
    )
    return found


@torch.no_grad()
def _drift(model: DiffusersModel) -> float:
    """The mean of what the UNet adds to an even input."""
    given = torch.full((1, 4, _SIDE, _SIDE), _EVEN)
    states = torch.full((1, 2, model.unet.config.cross_attention_dim), _EVEN)
    output = model.predict(given, torch.tensor([_LAST]), Conditioning(states))
    return float((output.cpu() - given).mean())
