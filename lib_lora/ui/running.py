"""What is seen while training: progress, curves, pictures, queue, log, and the buttons to pause, save and cancel."""

from __future__ import annotations

from typing import Any

from lib_lora.errors import LoraError
from lib_lora.ui import html_plot, html_running, html_samples, looking
from lib_lora.ui.live import Action, Do, Panel, Request, act, text_of
from lib_lora.ui.thumbs import Thumbs
from lib_lora.ui.trainer import RunFacts, Trainer, TrainStatus


class Running:
    """The regions' content, on plain values.

    `actions` are what buttons may ask for: other parts of the page add theirs. `refresh` is the hidden button that
    javascript presses.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.thumbs = Thumbs()
        self.refresh: Any = None
        self.actions: dict[str, Action] = {
            "pause": lambda do: trainer.pause(),
            "resume": lambda do: trainer.resume(text_of(do, "id")),
            "save": lambda do: trainer.save_now(),
            "cancel": lambda do: trainer.cancel(text_of(do, "id")),
            "move": lambda do: trainer.move(text_of(do, "id"), -1 if do.get("by") == -1 else 1),
        }

    def answer(self, request: Request) -> dict[str, str]:
        """Every region as it is now, and what came of the button that was pressed."""
        told = {"told": self.act(request.do)} if request.do else {}
        status = self.trainer.status()
        look = request.view.get("look")
        look = look if isinstance(look, dict) else {}
        shown = looking.find(self.trainer, look) if look else None
        return {
            "progress": html_running.progress(status, self.ended(text_of(request.view, "watched"), status)),
            "curves": self.curves(status),
            "samples": html_samples.strips(status.samples, self.thumbs, status.id),
            "queue": self.queue(status),
            "log": html_running.log(status.log),
            "look": looking.html(shown, look, self.thumbs),
            **told,
        }

    def ended(self, watched: str, status: TrainStatus) -> RunFacts | None:
        """The run that the browser saw training before the one in hand, if it is there."""
        if not watched or watched == status.id:
            return None
        try:
            return self.trainer.run(watched)
        except LoraError:  # forgotten meanwhile
            return None

    def act(self, do: Do) -> str:
        """Do what a button asks for; what came of it as HTML."""
        return act(do, self.actions)

    def curves(self, status: TrainStatus) -> str:
        """The plots; nothing before the first job."""
        return html_plot.plots(status.points) if status.state != "idle" or status.points else ""

    def queue(self, status: TrainStatus) -> str:
        """What waits; the runs are only listed if something does."""
        runs = {run.id: run for run in self.trainer.runs()} if status.waiting else {}
        return html_running.queue(status.waiting, runs)


def add(trainer: Trainer) -> Running:
    """The part of the page, into the current gradio context. Nothing is read of the trainer before a browser asks."""
    import gradio as gr

    running = Running(trainer)
    regions = {"progress": html_running.progress(TrainStatus())}
    regions |= dict.fromkeys(("told", "queue", "curves", "samples", "log", "look"), "")
    with gr.Column(elem_classes=["lorakit"], elem_id="lorakit_running"):
        running.refresh = Panel("running", regions, button="lorakit_refresh").add(running.answer)
    return running
