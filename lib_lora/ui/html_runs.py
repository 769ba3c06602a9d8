"""The list of all runs, and one of them in detail. Everything from a user is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lib_lora.train.differences import Difference, written
from lib_lora.ui import html_plot, html_samples
from lib_lora.ui.html_parts import button, fact, moment, number, own, shows, word
from lib_lora.ui.html_running import WORDS
from lib_lora.ui.spoken import spoken
from lib_lora.ui.thumbs import Thumbs
from lib_lora.ui.trainer import RunFacts

PAGE = 20  # runs at once
GOES_ON = ("paused", "cancelled", "failed", "interrupted")
UNDER_WAY = ("running", "queued")


@dataclass(frozen=True)
class Detail:
    """What is shown of one run beside its facts. `toml` and `command`: the job for another machine.

    `folder` and `files` are as users may read them, `on` is the form to train it further.

    `waits`: it is in the queue, or in hand. One that is "queued" and in no queue lost it, in a kill or a full disk.
    """

    run: RunFacts
    settings: Sequence[Difference]
    toml: str
    command: str
    problem: str = ""
    waits: bool = False
    on: str = ""
    folder: str = ""
    files: Sequence[str] = ()


def table(runs: Sequence[RunFacts], page: int, opened: str) -> str:
    """A page of the list, newest first; `opened` is the id of the run shown in detail."""
    if not runs:
        return '<section class="lk-box"><h3>Runs</h3><p class="lk-note">There are no runs yet.</p></section>'
    last = (len(runs) - 1) // PAGE
    page = max(min(page, last), 0)
    rows = "".join(_row(run, run.id == opened) for run in runs[page * PAGE : (page + 1) * PAGE])
    head = "".join(f'<th scope="col">{word(name)}</th>' for name in ("Name", "Kind", "State", "Steps", "Loss", "When"))
    turn = ""
    if last:
        turn = (
            '<div class="lk-buttons">'
            + shows("Newer", {"page": page - 1}, on=page > 0)
            + f"<span>{word('page')} {number(page + 1)} {word('of')} {number(last + 1)}</span>"
            + shows("Older", {"page": page + 1}, on=page < last)
            + "</div>"
        )
    return (
        f'<section class="lk-box"><h3>Runs</h3><div class="lk-scroll" tabindex="0"><table class="lk-table lk-runs">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{turn}</section>"
    )


def detail(found: Detail, thumbs: Thumbs) -> str:
    """Facts, message, buttons, settings, curves, samples and the job for another machine."""
    run = found.run
    files = "".join(f"<li><code>{escape(path)}</code></li>" for path in found.files)
    problem = f'<p class="lk-message lk-bad">{spoken(found.problem)}</p>' if found.problem else ""
    message = f'<p class="lk-note">{spoken(run.message)}</p>' if run.message else ""
    listed = f'<h4>Files</h4><ul class="lk-files">{files}</ul>' if files else ""
    samples = html_samples.strips(run.samples, thumbs, run.id)
    curves = html_plot.plots(run.points) if run.points else ""
    key = escape(run.id)
    further = f"<h4>Train further</h4>{found.on}" if found.on else ""
    return (
        f'<section class="lk-box lk-detail" id="lorakit_detail" data-form="{key}" data-key="{key}">'
        f"<h3>{word('Run')} {own(run.name)}</h3>"
        f"{_facts(run, found.folder)}{message}{problem}{_buttons(run, found.waits)}{further}{_settings(found.settings)}"
        f"{listed}{curves}{samples}{_export(found)}</section>"
    )


def _row(run: RunFacts, opened: bool) -> str:
    here = ' aria-selected="true" class="lk-here"' if opened else ""
    name = (
        f'<button type="button" class="lk-link notranslate" data-set="{escape(_view(run.id, opened))}" '
        f'aria-expanded="{str(opened).lower()}">{escape(run.name)}</button>'
    )
    loss = number(f"{run.loss:.4f}") if run.loss is not None else ""
    steps = f"{number(run.step)} {word('of')} {number(run.steps)}" if run.steps else number(run.step)
    state = f'<span class="lk-state lk-{escape(run.state)}">{word(WORDS.get(run.state, run.state))}</span>'
    cells = (name, word(run.method.replace("_", " ")), state, steps, loss, number(moment(run.made)))
    return f'<tr data-key="{escape(run.id)}"{here}>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _view(id: str, opened: bool) -> str:
    import json

    return json.dumps({"open": "" if opened else id})


def _facts(run: RunFacts, folder: str) -> str:
    facts = fact("State", word(WORDS.get(run.state, run.state)))
    facts += fact("Steps", number(run.step), word("of"), number(run.steps))
    facts += fact("Loss", number(f"{run.loss:.4f}")) if run.loss is not None else ""
    facts += fact("Kind", word(run.method.replace("_", " ")))
    facts += fact("When", number(moment(run.made)))
    return f'<dl class="lk-facts">{facts}</dl><p class="lk-note"><code>{escape(folder)}</code></p>'


def _buttons(run: RunFacts, waits: bool) -> str:
    lost = run.state == "queued" and not waits
    goes_on = lost or (run.state in GOES_ON and run.can_resume)
    asks = {"ask": "Press again to delete the run's folder:", "ask_more": run.id}
    results = bool(run.files or run.saved) and run.state not in ("running", "queued")
    return (
        '<div class="lk-buttons">'
        + button("Repeat with changes", {"run": run.id}, data={"panel": "repeat", "to": "lorakit_form"}, kind="primary")
        + button("Continue", {"do": "continue", "run": run.id}, on=goes_on, title="Go on from its last saved state")
        + shows("Show its result", {"run": run.id}, "after", on=results, data={"to": "lorakit_results"})
        + button("Forget", {"do": "forget", "run": run.id}, on=lost or run.state not in UNDER_WAY, kind="stop", **asks)
        + shows("Close", {"open": ""})
        + "</div>"
    )


def _settings(settings: Sequence[Difference]) -> str:
    if not settings:
        return ""
    rows = "".join(
        f'<tr title="{escape(one.help)}"><th scope="row" class="notranslate">{escape(one.key)}</th>'
        f'<td class="notranslate">{escape(written(one.value))}</td>'
        f'<td class="lk-soft notranslate">{escape(written(one.default))}</td></tr>'
        for one in settings
    )
    head = "".join(f'<th scope="col">{word(name)}</th>' for name in ("Setting", "Value", "By default"))
    return (
        "<details open><summary>Settings that differ from the defaults</summary>"
        f'<div class="lk-scroll"><table class="lk-table lk-settings"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _export(found: Detail) -> str:
    if not found.toml:
        return ""
    return (
        "<details><summary>The job for another machine</summary>"
        '<p class="lk-note">Save this as job.toml, copy the pictures there too, and run the command in this '
        f"program's folder.</p><pre class='lk-code' tabindex='0'>{escape(found.command)}</pre>"
        f"<div class='lk-buttons'>{button('Copy the command', data={'copy': found.command})}"
        f"{button('Copy the job', data={'copy': found.toml})}</div>"
        f"<pre class='lk-code' tabindex='0'>{escape(found.toml)}</pre></details>"
    )
