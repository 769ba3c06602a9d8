"""Which base model a checkpoint file is of, by its tensors' names and shapes; and why others cannot be used."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lib_lora.errors import UnknownFormat, WrongBaseModel
from lib_lora.keys import versions

Shape = tuple[int, ...]
UNET_PREFIX = "model.diffusion_model."
ENTRY = f"{UNET_PREFIX}input_blocks.0.0.weight"
SIZES = f"{UNET_PREFIX}label_emb.0.0.weight"
WANTED = "give a checkpoint of SD 1.x, SD 2.x or SDXL"
# (what it is, what only names of its tensors begin with); the first that is found counts.
_FOREIGN = (
    ("SD 3", ("model.diffusion_model.joint_blocks.", "joint_blocks.", "model.diffusion_model.x_embedder.")),
    ("Flux", ("double_blocks.", "model.diffusion_model.double_blocks.")),
    ("the SDXL refiner, which only finishes another model's pictures", ("conditioner.embedders.0.model.",)),
    ("an unCLIP model, which wants a picture as prompt", ("embedder.model.", "noise_augmentor.")),
    ("a depth-to-image model", ("depth_model.",)),
    ("AltDiffusion, which has another text encoder", ("cond_stage_model.roberta.",)),
    ("a model of EDM's parameterisation (as Playground 2.5)", ("edm_mean", "edm_std", "edm_vpred.sigma_max")),
)
_CHANNELS = {
    9: "for inpainting: its UNet takes 9 channels, of which 5 are a mask and the picture round it",
    8: "an InstructPix2Pix model: its UNet takes 8 channels, of which 4 are the picture to edit",
    5: "a depth-to-image model: its UNet takes 5 channels",
}
_NETWORK = re.compile(r"(?:^|\.)(?:lora_|hada_|lokr_|oft_|dora_|lycoris_)|\.alpha$|\.diff(?:_b)?$")


def kind_of(shapes: Mapping[str, Shape], file: str) -> str:
    """ "sd1", "sd2" or "sdxl".

    Raises WrongBaseModel for other models and for those whose UNet is given more than noise, UnknownFormat for a file
    that is no checkpoint in CompVis' or sgm's naming.
    """
    for title, beginnings in _FOREIGN:
        if any(name.startswith(beginnings) for name in shapes):
            raise WrongBaseModel(f"{file} is {title}; {WANTED}")
    entry = shapes.get(ENTRY, ())
    if len(entry) != 4:
        raise UnknownFormat(
            f"{file} has no convolution {ENTRY}, so it is no whole CompVis checkpoint{_instead(shapes)}; {WANTED}"
        )
    if entry[1] != 4:
        title = _CHANNELS.get(entry[1], f"of another kind: its UNet takes {entry[1]} channels, not 4")
        raise WrongBaseModel(f"{file} is {title}; {WANTED}")
    if any(name.startswith("conditioner.embedders.") for name in shapes) or SIZES in shapes:
        return versions.SDXL
    return versions.SD2 if any(name.startswith("cond_stage_model.model.") for name in shapes) else versions.SD1


def _instead(shapes: Mapping[str, Shape]) -> str:
    """What the file seems to be."""
    if any(_NETWORK.search(name) for name in shapes):
        return " but a network (a LoRA or the like), which belongs into the prompt"
    if any(name.startswith(("down_blocks.", "unet.down_blocks.")) for name in shapes):
        return " but diffusers' UNet; give the whole folder that has model_index.json"
    if any(name.startswith(("encoder.", "decoder.", "first_stage_model.")) for name in shapes):
        return " but a VAE"
    return ""
