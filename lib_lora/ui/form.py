"""The form that a job is made with: what it is, its word and name, how well, every setting behind Advanced; Train."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lib_lora.errors import LoraError
from lib_lora.train.config import JobConfig
from lib_lora.train.presets import PRESETS, preset_job
from lib_lora.train.rare_words import CANDIDATES
from lib_lora.train.wizard import GOOD, SUBJECT
from lib_lora.ui import form_html, form_lines, form_presets, form_toml, html
from lib_lora.ui.compat import api_argument, js_argument
from lib_lora.ui.form_look import Looker, short
from lib_lora.ui.form_memory import FormMemory
from lib_lora.ui.form_page import KIND_LABELS, QUALITY_LABELS, FormPage, Values
from lib_lora.ui.form_state import Edits
from lib_lora.ui.trainer import Settings, Trainer

log = logging.getLogger(__name__)
MOST_STEPS = 5000  # of the slider, unless more are asked for
START_SCRIPT = "(...values) => { window.lorakitBusy = true; return values }"  # the running part looks at once


@dataclass(frozen=True)
class Form:
    """The form's components. `inputs` hold its values; `page` reads and fills them."""

    inputs: list[Any]
    page: FormPage

    def read(self, values: Sequence[Any]) -> Settings:
        """The values of `inputs` as settings. Raises BadConfig naming the field that cannot be used."""
        return self.page.read(values)

    def fill(self, settings: Settings) -> list[Any]:
        """What to send to `inputs` so that they hold these settings. Raises LoraError if they cannot be used."""
        return updates(self.page.fill(settings))


def add(trainer: Trainer, folder: Any) -> Form:
    """The form, into the current gradio context; `folder` is the pictures step's text field."""
    import gradio as gr

    page = FormPage(trainer)
    looker = Looker(page)
    job, preset = _beginning(page)
    with gr.Column(elem_id="lorakit_form"):
        base = gr.HTML(form_lines.base_line(trainer.base()), elem_id="lorakit_base")
        parts = _fields(job, preset)
        form = Form([folder, *parts.inputs], page)
        presets = form_presets.add(page, form.inputs)
        gr.HTML(form_html.advanced())
        form_toml.add(page, form.inputs)
        with gr.Row():
            train = gr.Button("Train", variant="primary", elem_id="lorakit_start")
            queue = gr.Button("Add to queue", elem_id="lorakit_queue", elem_classes=["lk-asks-notice"])
        message = gr.HTML(elem_id="lorakit_message")
    events = Events(page, looker)
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", **api_argument(train.click, None)}
    script = js_argument(train.click, START_SCRIPT)
    train.click(events.start, [*form.inputs, parts.seen], [message], **quiet, **script)
    queue.click(events.start, [*form.inputs, parts.seen], [message], **quiet, **script)
    parts.kind.input(events.kind, form.inputs, form.inputs, **quiet)
    parts.quality.input(events.quality, form.inputs, form.inputs, **quiet)
    parts.suggest.click(events.suggest, [parts.trigger], [parts.trigger], **quiet)
    steps, state = parts.inputs[-2:]
    shown = [
        parts.name,
        base,
        parts.trigger_line,
        parts.name_line,
        parts.estimate,
        parts.hints,
        *presets,
        steps,
        state,
        parts.seen,
    ]
    parts.look.click(events.look, [*form.inputs, parts.seen], shown, **quiet)
    parts.restore.click(events.restore, [folder], [*form.inputs, parts.seen], **quiet)
    return form


@dataclass(frozen=True)
class _Parts:
    """The components of the form's upper half. `inputs` are all that hold values but the folder."""

    inputs: list[Any]
    kind: Any
    quality: Any
    trigger: Any
    suggest: Any
    name: Any
    trigger_line: Any
    name_line: Any
    estimate: Any
    hints: Any
    seen: Any
    look: Any
    restore: Any


def _fields(job: JobConfig, preset: str) -> _Parts:
    import gradio as gr

    kinds, qualities = list(KIND_LABELS.values()), list(QUALITY_LABELS.values())
    kind = gr.Radio(kinds, value=KIND_LABELS[SUBJECT], label="What is it?", elem_id="lorakit_kind")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=280):
            with gr.Row(equal_height=False, elem_classes=["lk-with-button"]):
                trigger = gr.Textbox(
                    value=CANDIDATES[0], label="Trigger", info="a rare word that will call it", elem_id="lorakit_word"
                )
                suggest = gr.Button("Suggest", elem_id="lorakit_suggest", size="sm")
            trigger_line = gr.HTML("", elem_id="lorakit_word_check")
        with gr.Column(scale=2, min_width=200):
            class_word = gr.Textbox(
                label="Class", info="what it is one of; may stay empty", placeholder="e.g. dog", elem_id="lorakit_class"
            )
        with gr.Column(scale=2, min_width=200):
            name = gr.Textbox(label="Name", info="of the new file and of its tag", value="", elem_id="lorakit_name")
            name_line = gr.HTML("", elem_id="lorakit_name_check")
    gr.HTML(form_html.concepts())
    with gr.Row(equal_height=False):
        quality = gr.Radio(qualities, value=QUALITY_LABELS[GOOD], label="Quality", elem_id="lorakit_quality")
        steps = gr.Slider(1, MOST_STEPS, value=job.training.steps, step=1, label="Steps", elem_id="lorakit_steps")
    estimate = gr.HTML("", elem_id="lorakit_estimate")
    with gr.Column(elem_classes=["lk-hidden"]):
        text = Edits.of_job(job, preset).as_text()
        state = gr.Textbox(text, lines=2, show_label=False, elem_id="lorakit_form_state")
        hints = gr.Textbox("{}", lines=2, show_label=False, elem_id="lorakit_form_hints")
        look = gr.Button("Look", elem_id="lorakit_form_look")
        restore = gr.Button("Restore", elem_id="lorakit_form_restore")
    return _Parts(
        [kind, quality, trigger, class_word, name, steps, state],
        *(kind, quality, trigger, suggest, name, trigger_line, name_line, estimate, hints),
        seen=gr.State("{}"),
        look=look,
        restore=restore,
    )


def _beginning(page: FormPage) -> tuple[JobConfig, str]:
    """What the form holds until javascript asks what was remembered. Nothing is measured while the page is built."""
    preset = next(iter(PRESETS))
    try:
        return page.trainer.job({"preset": preset}), preset
    except LoraError as error:  # the page must come up all the same; a look at the form tells it
        log.warning("the form begins without this host's defaults: %s", error)
        return preset_job(preset), preset


def updates(values: Values, held: Sequence[Any] | None = None) -> list[Any]:
    """The form's values as gradio wants them sent.

    `held`: what the fields held when this was asked for. Those that stay are not sent: somebody may have typed since.
    """
    import gradio as gr

    found = [gr.update(value=value) for value in values]
    steps = values[6]
    most = max(MOST_STEPS, int(steps)) if isinstance(steps, (int, float)) and math.isfinite(steps) else MOST_STEPS
    found[6] = gr.update(value=steps, maximum=most)
    if held is None:
        return found
    return [one if new != old else gr.update() for one, new, old in zip(found, values, held, strict=True)]


class Events:
    """What gradio calls, on plain values."""

    def __init__(self, page: FormPage, looker: Looker) -> None:
        self.page, self.looker = page, looker

    def start(self, *values: Any) -> str:
        """Train, or queue: a message as HTML. What is sent is remembered. The last value is what this browser knows."""
        *form, seen = values
        if not self.page.is_complete(form):
            return html.message("The form is still being filled in; press again in a moment.", bad=True)
        FormMemory(self.page.trainer.home()).save(form, _seen(seen).get("proposed", ""))
        return self.page.start(form)

    def kind(self, *values: Any) -> list[Any]:
        """Another kind was chosen."""
        return form_presets.guarded(self.page.chosen, values)[0]

    def quality(self, *values: Any) -> list[Any]:
        """Another quality was chosen."""
        return form_presets.guarded(self.page.quality_chosen, values)[0]

    def suggest(self, current: str) -> str:
        """Another rare word."""
        return self.looker.suggestion(str(current or "").strip())

    def restore(self, folder: str) -> list[Any]:
        """The form as it was last, or begun for this machine and base; and the name that was proposed for it."""
        import gradio as gr

        remembered = self._remembered()
        if remembered is None:
            word = self.looker.suggestion("")
            top = [str(folder or ""), "", "", word, "", ""]
            begun = updates(self.page.anew(SUBJECT, [*top, 0, "{}"]))
            return [gr.update(), *begun[1:], "{}"]  # somebody may type a folder already
        values, proposed = remembered
        if folder and not values[0]:
            values[0] = folder
        return [*updates(values), json.dumps({"proposed": proposed})]

    def _remembered(self) -> tuple[Values, str] | None:
        """What was remembered, complete; None if nothing was, or nothing that can be used."""
        remembered = FormMemory(self.page.trainer.home()).load()
        if remembered is None:
            return None
        values, proposed = remembered
        try:
            form = self.page.reading(values)
            values[6] = self.page.begun(form)[0].training.steps if values[6] is None else values[6]
            values[7] = self.page.restored(values)
        except LoraError as error:  # else the page would ask for ever
            log.warning("what was remembered of the form cannot be used (%s); it begins anew", error)
            return None
        return values, proposed

    def look(self, *values: Any) -> list[Any]:
        """What the form says of itself, as far as it is new to this browser; the form is remembered."""
        import gradio as gr

        *form, seen_text = values
        seen = _seen(seen_text)
        found = self.looker.look(form, seen.get("proposed", ""))
        mark = short(json.dumps(form))
        proposed = found.name or seen.get("proposed", "")
        if found.restored and mark != seen.get("form"):  # another tab's form may be the newer one
            FormMemory(self.page.trainer.home()).save(form, proposed)
        texts = [found.base, found.trigger, found.name_line, found.estimate, found.hints, found.refused]
        digests = [short(text) for text in [*texts, json.dumps(found.presets)]]
        old = seen.get("digests", [])
        fresh = [number >= len(old) or old[number] != one for number, one in enumerate(digests)]
        sent = [gr.update(value=text) if new else gr.update() for text, new in zip(texts, fresh)]
        choices = gr.update(choices=list(found.presets)) if fresh[-1] else gr.update()
        name = gr.update(value=found.name) if found.name else gr.update()
        moved = updates(list(found.moved))[-2:] if found.moved else [gr.update(), gr.update()]
        kept = {"digests": digests, "proposed": proposed, **({"form": mark} if found.restored else {})}
        return [name, *sent[:5], choices, sent[5], *moved, json.dumps(kept)]


def _seen(text: Any) -> dict[str, Any]:
    try:
        found = json.loads(str(text))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
