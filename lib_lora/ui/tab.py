"""The Train page, top to bottom: pictures, captions, what to train and how well, what goes on, what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lib_lora.ui import after, captions, form, pictures, running, runs
from lib_lora.ui.captioners import Captioner
from lib_lora.ui.trainer import Trainer

CaptionersOf = Callable[[], Sequence[Captioner]]


def build(trainer: Trainer, captioners: CaptionersOf = tuple) -> Any:
    """The page as `gr.Blocks`, as the webui wants a tab."""
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as blocks:
        add(trainer, captioners)
    return blocks


def add(trainer: Trainer, captioners: CaptionersOf = tuple) -> None:
    """The page, into the current gradio context. `captioners` gives what can write captions on this host."""
    import gradio as gr

    with gr.Column(elem_classes=["lorakit"], elem_id="lorakit_page"):
        _title("1", "Pictures")
        step = pictures.add(trainer)
        captions.add(trainer, step.folder, step.looker, captioners)
        _title("2", "What to learn")
        made = form.add(trainer, step.folder)
        _title("3", "Training")
        shown = running.add(trainer)
        after.add(trainer, shown)
        runs.add(trainer, made)


def _title(number: str, text: str) -> None:
    import gradio as gr

    gr.HTML(f'<h2 class="lk-title"><span class="lk-count" aria-hidden="true">{number}</span><span>{text}</span></h2>')
