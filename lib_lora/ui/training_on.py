"""A run that goes on beyond its end, as itself: what is asked for, and what of now is kept."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from lib_lora.errors import BadConfig
from lib_lora.train import choose
from lib_lora.train.jobs import Run
from lib_lora.ui.html_parts import button
from lib_lora.ui.live import Do, text_of
from lib_lora.ui.trainer import RunFacts, Trainer

ENDED = ("finished", "paused", "cancelled", "failed", "interrupted")
PART = 3  # a run that goes on gets this part of the first one's steps, unless the user says otherwise
MOST = 10_000_000  # steps, as training.steps has it
EXPLAINED = (
    "Takes this same run up where it ended, with its optimizer and the order of its pictures. The learning rate "
    "follows the curve of the longer run. The name stays: at the new end the finished file is replaced, and the one of "
    "now is kept among what was saved."
)


def form(run: RunFacts) -> str:
    """The field and the button, for a form of the run; empty if the run cannot go on."""
    if not can_go_on(run):
        return ""
    go = button("Train on", {"do": "train_on", "run": run.id})
    return (
        '<div class="lk-fields" style="align-items:end"><label class="lk-field" data-key="on_steps">'
        "<span>More steps of this run</span>"
        f'<input name="on_steps" type="number" min="1" max="{MOST}" value="{more_steps(run)}"></label>{go}</div>'
        f'<p class="lk-note">{escape(EXPLAINED)}</p>'
    )


def can_go_on(run: RunFacts) -> bool:
    """Whether a run has ended with a state to go on from."""
    return run.can_resume and run.state in ENDED


def more_steps(run: RunFacts) -> int:
    """How many steps more are proposed."""
    return max(run.steps // PART, 1)


def train_on(trainer: Trainer, do: Do) -> str:
    """Queue the run with so many steps more than it was to have; a message. Raises BadConfig."""
    run, said = trainer.run(text_of(do, "run")), _field(do)
    if not can_go_on(run):
        raise BadConfig(f"run {run.name!r} has no state to go on from, or is not over; repeat it with more steps")
    try:
        more = int(said.strip())
    except ValueError:
        more = 0
    if not 1 <= more <= MOST:
        raise BadConfig(f"'More steps' takes a whole number from 1 to {MOST}; {said or ' '!r} is none")
    folder = Run.open(run.folder)
    choose.put_aside(folder, folder.job(), run.step)  # before a process holds the run, and clears it of half files
    return trainer.resume(run.id, {"training.steps": max(run.steps, run.step) + more, "training.epochs": None})


def _field(do: Do) -> str:
    fields = do.get("fields")
    return text_of(fields, "on_steps") if isinstance(fields, Mapping) else ""
