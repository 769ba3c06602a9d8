"""What stands after the module in a tensor's name: other tools' names -> the names that network types know.

Those are kohya's and LyCORIS' names. Where a tool means something else by a tensor, the name here is one of its own:
`lora_up.bias` (PEFT: added after the up projection, scaled like it), `lora_embedding_A` / `_B` (PEFT: factors of an
embedding, transposed), `lora_magnitude_vector` (PEFT's DoRA: always rows), `oft_R` (PEFT's OFT, where OneTrainer's is
`oft_R.weight`), `set_weight` / `set_bias` (a whole parameter instead of the base's).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

KOHYA, DIFFUSERS, PEFT = "kohya", "diffusers", "peft"
_ADAPTER = r"(?:\.[^.]+)?"  # PEFT's name of the adapter, where it was not taken out
_TRANSLATIONS = tuple(
    (re.compile(pattern), dialect, name)
    for pattern, dialect, name in (
        (rf"lora_A{_ADAPTER}\.weight", PEFT, "lora_down.weight"),
        (rf"lora_B{_ADAPTER}\.weight", PEFT, "lora_up.weight"),
        (rf"lora_B{_ADAPTER}\.bias", PEFT, "lora_up.bias"),
        (rf"(lora_embedding_[AB]){_ADAPTER}", PEFT, r"\1"),
        (rf"(lora_magnitude_vector){_ADAPTER}(?:\.weight)?", PEFT, r"\1"),
        (r"magnitude", "", "dora_scale"),  # ai-toolkit
        (r"(oft_R)\.[^.]+\.weight", PEFT, r"\1"),
        (rf"((?:hada|lokr)_\w+|oft_[rs]|boft_[Rs]|ia3_l){_ADAPTER}", "", r"\1"),
        (r"(?:lora|lora_linear_layer)\.(up|down)\.weight", DIFFUSERS, r"lora_\1.weight"),
        (r"set_(weight|bias)", "", r"set_\1"),
    )
)
# What network types and modifiers are made of. A test holds it against their files.
_KNOWN = re.compile(
    r"alpha|constraint|scalar|rescale|dora_scale|lora_magnitude_vector|lora_(?:up|down|mid)\.weight|lora_up\.bias"
    r"|lora_embedding_[AB]|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|weight|on_input|ia3_l|diff(?:_b)?"
    r"|[wb]_norm|set_(?:weight|bias)|(?:[ab][12]|bm)\.weight|oft_(?:blocks|diag|[rs]|R(?:\.\w+)?)|boft_[Rs]"
    r"|neumann_(?:terms|last)|coft_eps|bias_(?:indices|values|size)|[pq]_layer\.weight|lambda_layer"
    r"|base_[pq]\.weight|base_lambda"
)
_PEFTS_OWN = re.compile(r"oft_[rs]|boft_[Rs]|ia3_l|lora_embedding_[AB]|(?:hada|lokr)_\w+\..+")
_WHOLE = re.compile(r"(?:base_layer\.|modules_to_save\.(?:[^.]+\.)?)?(weight|bias)")
_WRAPPER = "base_model.model."
_NOISE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|processor)\.")  # torch.compile's level; diffusers' attention processors
_PROCESSOR_FACTOR = re.compile(r"_lora\.(?=(?:up|down)\.)")
_CUSTOM_DIFFUSION = re.compile(r"_custom_diffusion(?:\.0)?\.(weight|bias)")


@dataclass(frozen=True)
class Tidied:
    """A tensor's name without what only wraps it. `dialect` if that alone tells the tool, else ""."""

    name: str
    dialect: str


def tidy(name: str) -> Tidied:
    """The name without wrappers' levels, and with attention processors' factors behind a dot like everybody's.

    `tidy("unet.x.attn1.processor.to_q_lora.up.weight").name` is `unet.x.attn1.to_q.lora.up.weight`.
    """
    dialect = ""
    if _WRAPPER in name:
        name, dialect = name.replace(_WRAPPER, "", 1), PEFT
    plain = _NOISE.sub("", name)
    factor = _PROCESSOR_FACTOR.sub(".lora.", plain)
    whole = _CUSTOM_DIFFUSION.sub(r".set_\1", factor)
    return Tidied(whole, dialect or (DIFFUSERS if whole != plain else ""))


def known(tensor: str) -> bool:
    """Whether any network type or modifier has a tensor of this canonical name."""
    return _KNOWN.fullmatch(tensor) is not None


def translate(tensor: str, wrapped: bool, kohya: bool) -> tuple[str, str] | None:
    """`(canonical tensor name, dialect or "")`, or None if the name is that of a model's own parameter.

    `wrapped`: the name came with PEFT's wrapper, so that a plain `weight` or `bias` is one that was trained whole.
    `kohya`: the module has a prefix of kohya's, so that `weight` is an IA3 factor.
    """
    if wrapped and tensor == "oft_R.weight":
        return "oft_R", PEFT  # without the wrapper it is OneTrainer's, which turns convolutions the other way
    for pattern, dialect, replacement in _TRANSLATIONS:
        if found := pattern.fullmatch(tensor):
            told = dialect or (PEFT if _PEFTS_OWN.fullmatch(tensor) else "")
            return found.expand(replacement), told
    whole = _WHOLE.fullmatch(tensor)
    if whole is None or (kohya and tensor == "weight"):
        return tensor, ""
    return (f"set_{whole[1]}", PEFT) if wrapped else None
