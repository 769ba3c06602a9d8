"""The Train page: a folder of pictures in, a tag to copy out. Works with the host's queue on or off."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_lora.errors import LoraError
from lib_lora.ui import html
from lib_lora.ui.compat import api_argument, js_argument
from lib_lora.ui.fields import entered, shown, widget
from lib_lora.ui.service import TrainService, TrainStatus

log = logging.getLogger(__name__)
MAIN = ("data.folder", "data.trigger", "data.class_word", "output.name")
ADVANCED = (
    "network.type", "network.rank", "network.alpha", "network.train_text_encoder",
    "optimizer.lr", "optimizer.te_lr", "optimizer.name", "optimizer.schedule",
    "training.steps", "training.batch_size", "training.checkpointing", "training.seed",
    "training.min_snr_gamma", "training.offset_noise", "data.resolution", "data.flip",
    "data.captions", "output.sample_every", "output.save_every",
)  # fmt: skip
PER_ROW = 4
START_SCRIPT = "(...values) => { window.lorakitBusy = true; return values }"  # polls at once, not at the idle pace


def build(service: TrainService) -> Any:
    """The page as `gr.Blocks`, as the webui wants a tab."""
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as blocks:
        add(service)
    return blocks


def add(service: TrainService) -> None:
    """The page, into the current gradio context."""
    import gradio as gr

    with gr.Column(elem_classes=["lorakit"]):
        base = gr.HTML(html.base_line(service.base_name()))
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=340):
                form = _form(service)
                with gr.Row():
                    train = gr.Button("Train", variant="primary", elem_id="lorakit_start")
                    cancel = gr.Button("Cancel", variant="stop", elem_id="lorakit_stop")
                told = gr.HTML(elem_id="lorakit_message")
            with gr.Column(scale=2, min_width=340):
                progress, gallery, result = _outcome(service)
        refresh = gr.Button("Refresh", elem_id="lorakit_refresh", elem_classes=["lk-hidden"])
        seen = gr.State("")
    page = Page(service)
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    private = api_argument(train.click, None)
    start_script = js_argument(train.click, START_SCRIPT)
    train.click(page.start, form, [told, progress], **quiet, **private, **start_script)
    cancel.click(page.cancel, [], [told, progress], **quiet, **private)
    refresh.click(page.refresh, [seen], [base, progress, gallery, result, seen], **quiet, **private)
    _api(page)


def _form(service: TrainService) -> list[Any]:
    """The inputs, in the order that `Page.start` reads them."""
    import gradio as gr

    presets = service.presets()
    values = service.preset_values(presets[0])
    folder = gr.Textbox(
        label="Folder of pictures",
        info="5 to 30 pictures of one subject or style; a .txt of the same name beside a picture is its caption",
        placeholder="/home/me/pictures/rex",
        elem_id="lorakit_folder",
    )
    with gr.Row():
        trigger = gr.Textbox(label="Trigger", info="a rare word that will call it", value="sks", elem_id="lorakit_word")
        class_word = gr.Textbox(label="Class", info="what it is one of; empty for a style", placeholder="dog")
    with gr.Row():
        name = gr.Textbox(label="Name", info="of the new file and of its tag", value="my-network")
        preset = gr.Dropdown(list(presets), value=presets[0], label="Preset", info="sets everything under Advanced")
    advanced = []
    with gr.Accordion("Advanced", open=False):
        for start in range(0, len(ADVANCED), PER_ROW):
            with gr.Row():
                advanced += [widget(key, values[key]) for key in ADVANCED[start : start + PER_ROW]]

    def fill_in(chosen: str) -> list[Any]:
        """What the preset sets, into the Advanced widgets."""
        fresh = service.preset_values(chosen)
        return [gr.update(value=shown(key, fresh[key])) for key in ADVANCED]

    preset.change(fill_in, [preset], advanced, queue=False, show_progress="hidden", **api_argument(preset.change, None))
    return [folder, trigger, class_word, name, preset, *advanced]


def _outcome(service: TrainService) -> tuple[Any, Any, Any]:
    """Progress, sample pictures and the tag."""
    import gradio as gr

    progress = gr.HTML(html.progress(service.status()), elem_id="lorakit_progress")
    result = gr.Textbox(
        label="Prompt for the new network",
        info="appears when training has finished; copy it into a prompt",
        interactive=False,
        elem_id="lorakit_tag",
        **copy_button(gr.Textbox),
    )
    gallery = gr.Gallery(
        label="Samples", show_label=False, columns=4, height=300, object_fit="contain", elem_id="lorakit_samples"
    )
    return progress, gallery, result


def _api(page: Page) -> None:
    """Train, cancel and status for programs, by HTTP: hidden components with named endpoints."""
    import gradio as gr

    settings, answer = gr.Textbox(visible=False), gr.JSON(visible=False)
    for name, handler, inputs in (
        ("lorakit_train", page.api_train, [settings]),
        ("lorakit_status", page.api_status, []),
        ("lorakit_cancel", page.api_cancel, []),
    ):
        button = gr.Button(name, visible=False)
        button.click(handler, inputs, [answer], queue=False, **api_argument(button.click, name))


def copy_button(component: Any) -> dict[str, Any]:
    """The keyword that gives a textbox a copy button, in this gradio."""
    import inspect

    known = inspect.signature(component.__init__).parameters
    return {"show_copy_button": True} if "show_copy_button" in known else {"buttons": ["copy"]}


class Page:
    """What the page's events do, on plain values."""

    def __init__(self, service: TrainService) -> None:
        self.service = service

    def start(self, *values: Any) -> tuple[str, str]:
        """Start from the form's values, in its order: a message and the progress, both HTML."""
        try:
            text, bad = self.service.start(settings_of_form(values)), False
        except LoraError as error:
            text, bad = str(error), True
        return html.message(text, bad), html.progress(self.service.status())

    def cancel(self) -> tuple[str, str]:
        """Stop the running job: a message and the progress, both HTML."""
        return html.message(self.service.cancel()), html.progress(self.service.status())

    def refresh(self, seen: str) -> tuple[str, str, Any, Any, str]:
        """Base model, progress, sample pictures, prompt, and what the browser has then seen.

        Pictures and prompt are sent when they differ from `seen` only: a gallery that is sent again flickers.
        """
        import gradio as gr

        status = self.service.status()
        now = json.dumps([status.name, status.state, [str(path) for path in status.samples]])
        top = html.base_line(self.service.base_name()), html.progress(status)
        if now == seen:
            return *top, gr.update(), gr.update(), seen
        return *top, gr.update(value=pictures(status.samples)), prompt_of(status), now

    def api_train(self, settings: str) -> dict[str, Any]:
        """Start from a JSON object {"section.name": value, "preset": name}; {"ok", "message"}."""
        try:
            values = json.loads(settings)
            if not isinstance(values, dict):
                raise ValueError("not an object")
        except (ValueError, TypeError, RecursionError) as error:
            example = '{"data.folder": "/pictures", "output.name": "rex"}'
            return {"ok": False, "message": f"{str(settings)[:80]!r} is no JSON object ({error}); send e.g. {example}"}
        try:
            return {"ok": True, "message": self.service.start(values)}
        except LoraError as error:
            return {"ok": False, "message": str(error)}

    def api_status(self) -> dict[str, Any]:
        """The status as JSON."""
        return self.service.status().as_json()

    def api_cancel(self) -> dict[str, Any]:
        """Stop the running job; {"message"}."""
        return {"message": self.service.cancel()}


def settings_of_form(values: Sequence[Any]) -> Mapping[str, Any]:
    """The form's values as settings. Raises BadConfig naming the field that cannot be used."""
    folder, trigger, class_word, name, preset = (str(value or "").strip() for value in values[:5])
    settings: dict[str, Any] = {"preset": preset, "data.folder": folder.strip("'\""), "data.trigger": trigger}
    settings |= {"data.class_word": class_word, "output.name": name}
    return settings | {key: entered(key, value) for key, value in zip(ADVANCED, values[5:], strict=True)}


def pictures(paths: Sequence[Path]) -> list[tuple[Any, str]]:
    """The pictures, the newest first, with the step as caption; those deleted meanwhile are left out."""
    from PIL import Image

    found = []
    for path in reversed(paths):
        if path.is_file():
            with Image.open(path) as picture:
                found.append((picture.copy(), f"step {path.stem.split('-')[0].lstrip('0') or '0'}"))
    return found


def prompt_of(status: TrainStatus) -> str:
    """What to write in a prompt for the finished network; empty before."""
    return f"{status.words} {status.tag}".strip() if status.state == "finished" else ""
