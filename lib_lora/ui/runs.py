"""All runs there were: what they were made with, how they went, and doing them again."""

from __future__ import annotations

from typing import Any, Protocol

from lib_lora.errors import LoraError
from lib_lora.train.differences import differences
from lib_lora.train.export import command_for, job_text
from lib_lora.train.jobs import Run
from lib_lora.ui import html_runs
from lib_lora.ui.compat import api_argument
from lib_lora.ui.html_runs import Detail
from lib_lora.ui.live import Do, Panel, Request, act, asking, text_of
from lib_lora.ui.thumbs import Thumbs
from lib_lora.ui.trainer import Settings, Trainer


class Filled(Protocol):
    """A form that can be filled with settings: see ui.form."""

    @property
    def inputs(self) -> list[Any]:
        """Its components."""

    def fill(self, settings: Settings) -> list[Any]:
        """One gradio update for each of `inputs`."""


class Runs:
    """The regions' content, on plain values."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.thumbs = Thumbs()
        self.actions = {
            "continue": lambda do: trainer.resume(text_of(do, "run")),
            "forget": lambda do: trainer.forget(text_of(do, "run")),
        }

    def answer(self, request: Request) -> dict[str, str]:
        """Every region as it is now, and what came of the button that was pressed."""
        told = {"runs_told": self.act(request.do)} if request.do else {}
        page, opened = request.view.get("page"), text_of(request.view, "open")
        listed = html_runs.table(self.trainer.runs(), page if type(page) is int else 0, opened)
        return {"runs": listed, "detail": self.detail(opened), **told}

    def act(self, do: Do) -> str:
        """Do what a button asks for; what came of it as HTML."""
        return act(do, self.actions)

    def detail(self, id: str) -> str:
        """One run in detail; empty if there is none of that id any more."""
        try:
            run = self.trainer.run(id) if id else None
        except LoraError:
            run = None
        if run is None:
            return ""
        status = self.trainer.status()
        waits = id in status.waiting or (status.id == id and status.state == "running")
        try:
            job = Run.open(run.folder).job()
        except LoraError as error:
            return html_runs.detail(Detail(run, (), "", "", str(error), waits), self.thumbs)
        command = command_for(job, resume=False)
        return html_runs.detail(Detail(run, differences(job), job_text(job), command, waits=waits), self.thumbs)

    def repeat(self, said: Any, form: Filled) -> list[Any]:
        """The form's updates: a run's settings, or nothing if it is gone."""
        import gradio as gr

        try:
            return list(form.fill(self.trainer.settings_of(text_of(Request.read(said).do, "run"))))
        except LoraError as error:
            gr.Warning(str(error))
            return [gr.update() for _ in form.inputs]


def add(trainer: Trainer, form: Filled) -> None:
    """The part of the page, into the current gradio context."""
    import gradio as gr

    runs = Runs(trainer)
    with gr.Column(elem_classes=["lorakit"], elem_id="lorakit_all_runs"):
        Panel("runs", {"runs": html_runs.table((), 0, ""), "runs_told": "", "detail": ""}).add(runs.answer)
        with gr.Column(elem_classes=["lk-hidden"]):
            asked = gr.Textbox("", show_label=False)
            repeat = gr.Button("Repeat", elem_id="lorakit_repeat_refresh")
    repeat.click(
        lambda said: runs.repeat(said, form),
        [asked],
        form.inputs,
        queue=False,
        show_progress="hidden",
        **api_argument(repeat.click, None),
        **asking(repeat.click, "repeat"),
    )
