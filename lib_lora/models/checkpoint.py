"""Load SD 1.x, SD 2.x or SDXL of any width, from a checkpoint file or a diffusers folder, into diffusers modules."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lib_lora.errors import BadFile
from lib_lora.models import prediction
from lib_lora.models.compvis_file import load_file
from lib_lora.models.diffusers_folder import load_folder
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.models.identity import identity_of
from lib_lora.models.loading import Loading

__all__ = ["identity_of", "load_checkpoint"]


def load_checkpoint(
    path: str | Path,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
    *,
    use_ema: bool = False,
    prediction_type: str | None = None,
) -> DiffusersModel:
    """The model in a CompVis or sgm .safetensors or .ckpt file or in a diffusers folder, in eval mode and frozen.

    A .yaml of the same name gives what shapes do not tell (heads, v-prediction, CLIP folder). `use_ema` takes the
    UNet's averaged weights; `prediction_type` ("epsilon" or "v_prediction") overrides what the file or the .yaml says.
    `dtype` None is the file's own; SDXL's VAE stays float32 where it is float16. Nothing of the file is run, nothing is
    downloaded.

    Raises BadFile for a missing, damaged or incomplete file and for one without EMA weights, WrongBaseModel for other
    models (also for inpainting, the refiner, SD3), UnknownFormat for what is no checkpoint, BadConfig for a
    `prediction_type` that there is not.
    """
    prediction.check(prediction_type)
    path = Path(path)
    loading = Loading(dtype, torch.device(device), use_ema)
    if os.path.isdir(path):
        model, told = load_folder(path, loading)
    elif os.path.isfile(path):  # unlike Path's, false for names too long
        model, told = load_file(path, loading)
    else:
        raise BadFile(f"no checkpoint file {str(path)!r}; give the path of a Stable Diffusion checkpoint or folder")
    model.source = path
    model.prediction_type = prediction_type or told or prediction.assumed(model)
    return model
