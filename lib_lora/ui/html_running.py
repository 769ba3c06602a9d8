"""What the page shows of the job in hand: progress, buttons, queue and log. Everything from a user is escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape

from lib_lora.ui.html import time_words
from lib_lora.ui.html_parts import button, fact, megabytes, number, own, rate, word
from lib_lora.ui.spoken import spoken
from lib_lora.ui.trainer import RunFacts, TrainStatus

WORDS = {
    "idle": "Ready to train",
    "queued": "Waiting",
    "running": "Training",
    "paused": "Paused",
    "finished": "Finished",
    "failed": "Failed",
    "cancelled": "Stopped",
    "interrupted": "Interrupted",
}
NOTES = {
    "idle": "Nothing is being trained. Choose pictures above and press Train; what happens is shown here.",
    "paused": "The model is free for drawing. Resume goes on exactly where it stopped.",
    "cancelled": "Its state is kept: Resume goes on where it stopped.",
    "interrupted": "The program ended while it trained. Resume goes on from the last saved state.",
}
RESUMED = ("paused", "failed", "cancelled", "interrupted")
LOGGED = 200  # lines
TRAINING = "training"  # what is being done, from the beginning of the first step on


def progress(status: TrainStatus, ended: RunFacts | None = None) -> str:
    """State, bar and figures. The data attributes are what javascript reads for banner, title and notification.

    `ended` is a run that javascript has asked for: another one began before it was seen that this one had ended.
    """
    share = 1.0 if status.state == "finished" else status.step / status.total if status.total else 0.0
    share = max(min(share, 1.0), 0.0)
    state = status.state if status.state in WORDS else "idle"
    preparing = state == "running" and not status.step and status.doing != TRAINING
    facts = {
        "state": state, "id": status.id, "name": status.name, "step": status.step, "total": status.total,
        "percent": int(share * 100), "left": time_words(status.eta_s), "doing": status.doing,
        "waiting": len(status.waiting),
    }  # fmt: skip
    if ended is not None:
        told = {name: getattr(ended, name) for name in ("id", "name", "state", "step")}
        facts["ended"] = json.dumps({**told, "doing": ended.message})
    data = "".join(f' data-{name}="{escape(str(value))}"' for name, value in facts.items())
    busy = " lk-running" if state == "running" else ""
    bar = " lk-preparing" if preparing else ""
    title = word("Preparing" if preparing else WORDS[state]) + (f" {own(status.name)}" if status.name else "")
    note = status.doing or NOTES.get(state, "")
    return (
        f'<div class="lk-progress lk-{state}{busy}"{data}><div class="lk-head" role="status"><h3>{title}</h3>'
        f'<p class="lk-note">{spoken(note)}</p></div>'
        f'<div class="lk-bar{bar}" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{int(share * 100)}" aria-label="Progress"><div style="width:{share:.1%}"></div></div>'
        f"{figures(status)}{controls(status)}</div>"
    )


def figures(status: TrainStatus) -> str:
    """Step, epoch, time, loss, rate and memory, as far as they are known."""
    found = []
    if status.total:
        found.append(fact("Step", number(status.step), word("of"), number(status.total)))
    if status.epoch and status.state != "idle":
        found.append(fact("Epoch", number(status.epoch)))
    if status.state == "running" and status.eta_s is not None:
        found.append(fact("Time left", number(time_words(status.eta_s))))
    if status.step_s is not None:
        found.append(fact("Each step", number(_seconds(status.step_s))))
    if status.loss is not None:
        found.append(fact("Loss", number(f"{status.loss:.4f}")))
    if status.lr is not None:
        found.append(fact("Learning rate", number(rate(status.lr))))
    if status.memory is not None:
        whole = [word("of"), number(megabytes(status.memory_total))] if status.memory_total else []
        found.append(fact("Memory", number(megabytes(status.memory)), *whole))
    return f'<dl class="lk-facts">{"".join(found)}</dl>' if found else ""


def controls(status: TrainStatus) -> str:
    """Pause, Resume, Save now and Cancel, each only where it can be pressed."""
    running, under_way = status.state == "running", status.state in ("running", "paused")
    stands = status.state in RESUMED and bool(status.id)
    queued = bool(status.waiting) and not under_way  # after a restart the queue waits for a word
    return (
        '<div class="lk-buttons" role="group" aria-label="Training">'
        + button("Pause", {"do": "pause"}, on=running, title="Stop after this step; the model is free for drawing")
        + button("Resume", {"do": "resume", "id": status.id if stands else ""}, on=stands or queued)
        + button("Save now", {"do": "save"}, on=running, title="Keep the network as it is after this step, and go on")
        + button("Cancel", {"do": "cancel", "id": status.id}, on=under_way, kind="stop", ask="Press again to cancel")
        + "</div>"
    )


def queue(waiting: Sequence[str], runs: Mapping[str, RunFacts]) -> str:
    """The runs that wait, the next one first; empty if there are none."""
    if not waiting:
        return ""
    rows = []
    for place, id in enumerate(waiting):
        run = runs.get(id)
        about = f'<span class="lk-soft">{escape(run.method.replace("_", " "))}</span>' if run else ""
        called = own(run.name if run else id)
        rows.append(
            f'<li data-key="{escape(id)}"><span class="lk-grow">{called} {about}</span>'
            + button("Up", {"do": "move", "id": id, "by": -1}, on=place > 0, title="Train it earlier")
            + button("Down", {"do": "move", "id": id, "by": 1}, on=place + 1 < len(waiting), title="Train it later")
            + button("Remove", {"do": "cancel", "id": id}, kind="stop", ask="Press again to remove")
            + "</li>"
        )
    return f'<h4>Waiting to be trained</h4><ol class="lk-queue">{"".join(rows)}</ol>'


def log(lines: Sequence[str]) -> str:
    """The last lines for people, folded away; empty if there are none."""
    if not lines:
        return ""
    text = "".join(f"<div>{spoken(line)}</div>" for line in lines[-LOGGED:])
    return f'<details class="lk-log"><summary>Log</summary><div class="lk-lines" tabindex="0">{text}</div></details>'


def _seconds(seconds: float) -> str:
    return time_words(seconds) if seconds >= 60 else f"{seconds:.2g} s"
