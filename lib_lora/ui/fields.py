"""Settings -> gradio widgets: each setting is declared once, in train.config."""

from __future__ import annotations

from typing import Any

from lib_lora.train.config import find
from lib_lora.train.settings import Setting

LABELS = {
    "lr": "Learning rate",
    "te_lr": "Learning rate, text encoder",
    "min_snr_gamma": "Min-SNR gamma",
    "dtype": "Number format of the file",
    "name": "Optimizer",
    "steps": "Steps",
}


def label_of(item: Setting) -> str:
    """The setting's name as a label."""
    return LABELS.get(item.name, item.name.replace("_", " ").capitalize())


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
    if item.type is float:
        return gr.Textbox(**{**common, "value": f"{value:g}"})  # gr.Number shows 1e-4 as 0
    return gr.Textbox(**common)


def shown(key: str, value: Any) -> Any:
    """A setting's value as its widget shows it."""
    return f"{value:g}" if find(key).type is float else value


def entered(key: str, value: Any) -> Any:
    """What a widget holds, as the checked value of its setting. Raises BadConfig naming it."""
    item = find(key)
    if item.type is float:
        return item.parse(str(value).strip())
    if item.type is int and isinstance(value, float) and value.is_integer():
        return item.check(int(value))
    return item.check(value)
