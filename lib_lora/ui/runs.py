"""All runs there were: what they were made with, how they went, and doing them again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from lib_lora.errors import LoraError
from lib_lora.train.differences import differences
from lib_lora.train.export import command_for, job_text
from lib_lora.train.jobs import Run
from lib_lora.ui import html_runs, training_on
from lib_lora.ui.compat import api_argument
from lib_lora.ui.html_runs import Detail
from lib_lora.ui.live import Do, Panel, Request, act, asking, text_of
from lib_lora.ui.thumbs import Thumbs
from lib_lora.ui.trainer import RunFacts, Settings, Trainer, TrainStatus
from lib_lora.ui.training_on import train_on


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
            "train_on": lambda do: train_on(trainer, do),
        }

    def answer(self, request: Request) -> dict[str, str]:
        """Every region as it is now, and what came of the button that was pressed."""
        told = {"runs_told": self.act(request.do)} if request.do else {}
        page, opened = request.view.get("page"), text_of(request.view, "open")
        runs, status = list(self.trainer.runs()), self.trainer.status()
        listed = html_runs.table([as_seen(run, status) for run in runs], page if type(page) is int else 0, opened)
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
        status, plain = self.trainer.status(), self.trainer.for_the_page
        waits = id in status.waiting or (status.id == id and status.state == "running")
        found = Detail(
            as_seen(run, status), (), "", "", waits=waits, on="" if waits else training_on.form(run),
            folder=plain(str(run.folder)), files=[plain(str(path)) for path in run.files],
        )  # fmt: skip
        try:
            job = Run.open(run.folder).job()
        except LoraError as error:
            return html_runs.detail(replace(found, problem=plain(str(error))), self.thumbs)
        settings = [replace(one, value=_plain(one.value, plain)) for one in differences(job)]
        toml, command = plain(job_text(job)), plain(command_for(job, resume=False))
        return html_runs.detail(replace(found, settings=settings, toml=toml, command=command), self.thumbs)

    def repeat(self, said: Any, form: Filled) -> list[Any]:
        """The form's updates: a run's settings, or nothing if it is gone."""
        import gradio as gr

        try:
            return list(form.fill(self.trainer.settings_of(text_of(Request.read(said).do, "run"))))
        except LoraError as error:
            gr.Warning(str(error))
            return [gr.update() for _ in form.inputs]


def as_seen(run: RunFacts, status: TrainStatus) -> RunFacts:
    """A run as the part above shows it: its folder tells later that it is its turn, or that it goes on."""
    if run.id != status.id or status.state != "running":
        return run
    return replace(run, state="running", step=status.step, steps=status.total or run.steps, loss=status.loss)


def _plain(value: Any, plain: Callable[[str], str]) -> Any:
    """A setting's value without where folders lie."""
    if isinstance(value, str):
        return plain(value)
    return tuple(_plain(one, plain) for one in value) if isinstance(value, tuple) else value


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
