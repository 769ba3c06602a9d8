"""Settings -> what the page shows of them: titles, labels, and values as text, both ways. Each is declared once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from lib_lora.train.config import find
from lib_lora.train.settings import Setting

SECTIONS: Mapping[str, str] = {
    "method": "Kind of training",
    "network": "Network",
    "optimizer": "Learning rate and optimizer",
    "training": "Loop, loss and noise",
    "data": "Pictures and captions",
    "prior": "Class pictures (prior preservation)",
    "output": "Saving and samples",
    "base": "Base model",
}
LABELS: Mapping[str, str] = {
    "base.use_ema": "Use EMA weights of the checkpoint",
    "base.dtype": "Number format of the base",
    "base.prediction": "Prediction type",
    "method.name": "Method",
    "method.tokens": "Vectors of a new word",
    "method.token_lr": "Learning rate of new words",
    "method.as_lora": "Extract a LoRA of this rank",
    "method.bundle": "Bundle words into the network",
    "method.lcm_cfg_low": "LCM guidance, least",
    "method.lcm_cfg_high": "LCM guidance, largest",
    "method.lcm_steps": "LCM teacher steps",
    "method.pairs_after": "Folder of pictures after the change",
    "network.conv_rank": "Rank of convolutions",
    "network.conv_alpha": "Alpha of convolutions",
    "network.train_unet": "Train the UNet",
    "network.train_text_encoder": "Train the text encoder",
    "network.train_text_encoder_2": "Train the second text encoder",
    "network.targets": "Layers",
    "network.include": "Layers to add",
    "network.exclude": "Layers to leave out",
    "network.ranks": "Ranks by layer",
    "network.dora": "DoRA",
    "network.dora_axis": "DoRA axis",
    "network.rslora": "rsLoRA",
    "network.factor": "LoKr factor",
    "network.full_matrix": "LoKr full matrix",
    "network.decompose_both": "LoKr decompose both",
    "network.unit": "DyLoRA unit",
    "optimizer.name": "Optimizer",
    "optimizer.path": "Class of a custom optimizer",
    "optimizer.args": "Arguments of the optimizer",
    "optimizer.lr": "Learning rate",
    "optimizer.te_lr": "Learning rate, text encoder",
    "optimizer.te2_lr": "Learning rate, second text encoder",
    "optimizer.block_lr": "Learning rate by layer",
    "optimizer.lora_plus": "LoRA+ ratio",
    "optimizer.ema": "EMA decay",
    "optimizer.ema_warmup": "EMA warmup",
    "training.checkpointing": "Gradient checkpointing",
    "training.accumulation": "Gradient accumulation",
    "training.clip": "Gradient clipping",
    "training.min_snr_gamma": "Min-SNR gamma",
    "training.v_pred_like": "v-prediction-like loss",
    "training.scale_v_pred": "Scale v-prediction loss",
    "training.multires_levels": "Multi-resolution noise levels",
    "training.multires_discount": "Multi-resolution noise discount",
    "training.te_fraction": "Share of the run with the text encoder",
    "training.freeze_norms": "Freeze CLIP norms",
    "training.zero_terminal_snr": "Zero terminal SNR",
    "data.folder": "Folder of pictures",
    "data.class_word": "Class",
    "data.captions": "Captions from",
    "data.template": "Caption template",
    "data.prepend_trigger": "Begin captions with the trigger",
    "data.shuffle": "Shuffle tags",
    "data.weights": "Read emphasis in captions",
    "data.buckets": "Aspect ratio buckets",
    "data.cache": "Cache of latents",
    "prior.weight": "Weight of class pictures",
    "prior.images": "Number of class pictures",
    "output.dtype": "Number format of the file",
    "output.name": "Name of the network",
    "output.folder": "Folder of runs",
    "output.sidecar": "Write the card",
}
SMALL = 1e-3  # numbers below are written with an exponent
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def label_of(item: Setting) -> str:
    """The setting's name as a label."""
    return LABELS.get(item.key, item.name.replace("_", " ").capitalize())


def widget(key: str, value: Any) -> Any:
    """The gradio component that edits the setting `section.name`."""
    import gradio as gr

    item = find(key)
    common = {"label": label_of(item), "info": item.help, "value": value, "elem_id": f"lorakit_{item.name}"}
    if item.choices:
        return gr.Dropdown(choices=list(item.choices), **common)
    if item.type is bool:
        return gr.Checkbox(**common)
    if item.type is int:
        return gr.Number(precision=0, **common)
    return gr.Textbox(**{**common, "value": shown(key, value)})  # gr.Number shows 1e-4 as 0


def shown(key: str, value: Any) -> Any:
    """A setting's value as its widget shows it: text for numbers with a fraction, else as it is."""
    return number_text(value) if find(key).type is float and value is not None else value


def entered(key: str, value: Any) -> Any:
    """What a widget holds, as the checked value of its setting. Raises BadConfig naming it."""
    return checked(find(key), value)


def checked(item: Setting, value: Any) -> Any:
    """What a widget or a text field holds, as the setting's checked value. Raises BadConfig naming it."""
    if isinstance(value, str) and item.type is not str:
        return _from_text(item, value)
    if item.type is int and isinstance(value, float) and value.is_integer():
        return item.check(int(value))
    return item.check(value)


def text_of(item: Setting, value: Any) -> Any:
    """A value as the form's own fields hold it: bool as it is, everything else as text. `checked` reads it back."""
    if value is None:
        return ""
    if item.type is float:
        return number_text(value)
    if item.type is tuple:
        return _lines(value)
    return value if item.type in (bool, str) else str(value)


def number_text(value: float) -> str:
    """The shortest text that means the same number: 0.01, 512, 1e-4."""
    number = Decimal(repr(float(value))).normalize()
    if number and abs(number) < Decimal(str(SMALL)):
        sign, digits, _ = number.as_tuple()
        rest = "".join(map(str, digits[1:]))
        return f"{'-' * sign}{digits[0]}{'.' * bool(rest)}{rest}e{number.adjusted()}"
    return f"{number:f}"


def _from_text(item: Setting, text: str) -> Any:
    plain = text.strip()
    if item.optional and not plain:
        return None
    if item.type is tuple:
        return item.parse(plain) if plain.startswith("[") else item.check([line for line in text.split("\n") if line])
    if item.type is float and _NUMBER.fullmatch(plain):
        return item.check(float(plain))
    if item.type is int and _NUMBER.fullmatch(plain) and len(plain) < 32 and float(plain).is_integer():
        return item.check(int(plain) if plain.lstrip("+-").isdigit() else int(float(plain)))
    if item.type is bool and plain.lower() in ("true", "false"):
        return plain.lower() == "true"
    return item.check(text)  # of a wrong type: says what is accepted


def _lines(values: tuple[str, ...]) -> str:
    """One a line; as JSON where a line would not come back as it is."""
    text = "\n".join(values)
    odd = text.strip().startswith("[") or any(not value or "\n" in value or "\r" in value for value in values)
    return json.dumps(list(values), ensure_ascii=False) if odd else text
