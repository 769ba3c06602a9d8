"""What a file is that holds no network, by the names of its tensors, so that the message can say where it belongs."""

from __future__ import annotations

import re
from collections.abc import Iterable

CONTROL_LORA = "lora_controlnet"  # an empty tensor of this name marks them
# (what the file is and what to do with it, what one of its names looks like); the first that fits counts.
_KINDS = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("a control-lora, which is a ControlNet; choose it in the ControlNet extension", rf"^{CONTROL_LORA}$"),
        (
            "a ControlNet or T2I-Adapter; choose it in the ControlNet extension",
            r"^(?:control_model\.)?(?:input_hint_block|zero_convs)\.|^controlnet_|^adapter\.body\.",
        ),
        ("an IP-Adapter; choose it in the ControlNet extension", r"^ip_adapter\.|^image_proj\."),
        (
            "a textual inversion embedding; put it into the embeddings folder and write its name in the prompt",
            r"^emb_params$|^string_to_param\.|^clip_[lg]$|^<[^>]+>$",
        ),
        ("a VAE; put it into the VAE folder", r"^(?:decoder|encoder)\.(?:conv_in|mid|up|down|mid_block)\b"),
        (
            "a checkpoint or a part of one; put it into the checkpoints folder",
            r"^(?:model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.|^model_ema\."
            r"|^(?:unet\.)?(?:conv_in|time_embedding\.linear_1|time_embed\.0)\.weight$",
        ),
        ("a hypernetwork; put it into the hypernetworks folder", r"^(?:320|640|768|1024|1280)\.[01]\."),
        (
            "a PEFT adapter of a kind that cannot be applied (VeRA, FourierFT, HRA, prompt tuning and the like); "
            "choose one of LoRA, LoHa, LoKr, OFT, BOFT or IA3",
            r"vera_lambda|fourierft_|hra_u|vblora_|prompt_embeddings|prefix_task|randlora_|lora_E\b",
        ),
        (
            "an adapter of a language model; choose one for an image model",
            r"(?:^|\.)(?:model|transformer)\.(?:layers|h)\.\d",
        ),
    )
)


def describe(names: Iterable[str]) -> str | None:
    """What a file with these names is, and where it belongs, as the end of "this is ..."; None if nobody knows."""
    names = tuple(names)
    return next((kind for kind, pattern in _KINDS if any(pattern.search(name) for name in names)), None)
