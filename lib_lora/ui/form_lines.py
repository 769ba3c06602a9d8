"""The lines of the form that say what the values mean: base, trigger, name, estimate, presets. User text is escaped.

Words and numbers stand in text nodes of their own: words are translated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from lib_lora.train.estimate import Visits
from lib_lora.train.pace import Pace
from lib_lora.train.rare_words import TriggerFacts
from lib_lora.train.wizard import NAMES, Offer
from lib_lora.ui.html import time_words
from lib_lora.ui.spoken import spoken
from lib_lora.ui.trainer import BaseFacts

MB = 1e6
VERDICTS = {"good": "a rare word, good", "fair": "works", "poor": "choose a rarer word"}


@dataclass(frozen=True)
class Costs:
    """What a job will take; None where nobody knows. Bytes and steps."""

    pace: Pace | None
    visits: Visits
    memory: int | None
    memory_total: int | None
    file: int | None


def base_line(facts: BaseFacts) -> str:
    """The base that is trained against, or why it cannot be."""
    name = f'<b class="notranslate">{escape(facts.name)}</b>'
    if facts.refused:
        why = f"<span>{spoken(facts.refused)}</span>"
        return f'<div class="lk-base lk-bad"><span>Cannot train against</span> {name}: {why}</div>'
    version = NAMES.get(facts.version, facts.version)
    return (
        f'<div class="lk-base"><span>Trains against</span> {name} '
        f'<span class="lkf-tag">{escape(version)}</span> <span class="lkf-tag">{facts.resolution} px</span></div>'
    )


def trigger_line(facts: TriggerFacts | None) -> str:
    """What the text encoder makes of the trigger."""
    if facts is None or not facts.text:
        return _line("", "No trigger: the network's tag alone will call it.")
    tokens = f"<b>{len(facts.ids)}</b> <span>{'token' if len(facts.ids) == 1 else 'tokens'}</span>" if facts.ids else ""
    verdict = f"<span>{VERDICTS[facts.verdict]}</span>"
    notes = "".join(f"<span>{spoken(note)}</span> " for note in facts.notes)
    head = ": ".join(part for part in (tokens, verdict) if part)
    return f'<div class="lkf-check lkf-{facts.verdict}">{head}{". " + notes if notes else ""}</div>'


def name_line(tags: str, checkpoint: str, taken: str, free: str) -> str:
    """What a prompt says to use the files, the checkpoint to choose; or the file in the way, and a name that helps."""
    if not taken:
        prompt = f"<span>Prompt:</span> <code>{escape(tags)}</code>" if tags else ""
        chosen = f"<span>Checkpoint:</span> <code>{escape(checkpoint)}</code>" if checkpoint else ""
        return _line("", " ".join(filter(None, (prompt, chosen))))
    use = f'<button type="button" data-lk-put="lorakit_name" data-value="{escape(free)}"><span>Use</span> '
    use += f"<b>{escape(free)}</b></button>"
    return (
        f'<div class="lkf-check lkf-poor"><span>There is such a file already:</span> <code>{escape(taken)}</code> '
        f"{use if free else ''}</div>"
    )


def estimate(costs: Costs, notes: Sequence[str], saved: Sequence[str]) -> str:
    """Time, memory and file as figures, visits, what was changed to save memory, and warnings."""
    chips = "".join(_chips(costs))
    warned = "".join(f"<li>{spoken(note)}</li>" for note in notes)
    fitted = ", ".join(f"<code>{escape(one)}</code>" for one in saved)
    return (
        f'<div class="lkf-estimate"><div class="lkf-chips">{chips}</div>{_visits(costs.visits)}'
        + (f'<p class="lkf-help"><span>Changed to fit this machine:</span> {fitted}</p>' if fitted else "")
        + (f'<ul class="lkf-warnings">{warned}</ul>' if warned else "")
        + "</div>"
    )


def offers_line(offers: Iterable[Offer]) -> str:
    """The presets that are not offered, and why."""
    lines = "".join(f"<li><b>{escape(one.name)}</b>: <span>{spoken(one.refused)}</span></li>" for one in offers)
    return f'<div class="lkf-help"><span>Not offered here:</span><ul>{lines}</ul></div>' if lines else ""


def size_words(size: float) -> str:
    """Bytes as people say them: 19 MB, 2.1 GB."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    if size >= 1e5:
        return f"{size / MB:.0f} MB" if size >= 10 * MB else f"{size / MB:.1f} MB"
    return f"{size / 1e3:.0f} kB"


def _chips(costs: Costs) -> Iterable[str]:
    pace = costs.pace
    if pace is not None:
        source = "as run" if pace.alike else "reckoned from run"
        told = "<span>a rough guess: nothing alike ran yet</span>"
        if pace.run:
            told = f'<span>{source}</span> <b class="notranslate">{escape(pace.run)}</b>'
        yield _chip("Time", f"<span>about</span> {_rounded(pace.seconds(costs.visits.steps))}", told)
    if costs.memory is not None:
        total = costs.memory_total
        there = f"<span>of</span> {size_words(total)}" if total else "<span>of main memory</span>"
        yield _chip("Memory", f"<span>about</span> {size_words(costs.memory)}", there)
    if costs.file is not None:
        yield _chip("File", size_words(costs.file), "")


def _chip(title: str, value: str, source: str) -> str:
    return f'<div class="lkf-chip"><span>{title}</span><b>{value}</b><small>{source}</small></div>'


def _visits(visits: Visits) -> str:
    head = f"<b>{visits.steps}</b> <span>steps of</span> <b>{visits.per_step}</b> <span>pictures:</span> "
    if not visits.pictures:
        return f'<p class="lkf-help">{head}<b>{visits.visits}</b> <span>visits</span></p>'
    return (
        f'<p class="lkf-help">{head}<b>{visits.visits}</b> <span>visits, about</span> <b>{visits.each:.0f}</b> '
        f"<span>of each of</span> <b>{visits.pictures}</b> <span>pictures;</span> <b>{visits.epochs:.3g}</b> "
        "<span>epochs</span></p>"
    )


def _rounded(seconds: float) -> str:
    """A time that does not pretend to be exact."""
    step = 3600 / 4 if seconds >= 7200 else 60 if seconds >= 120 else 10
    words = time_words(max(step, round(seconds / step) * step))
    return words.replace(" 00 s", "").replace(" 00 min", "")


def _line(kind: str, text: str) -> str:
    return f'<div class="lkf-check{" lkf-" + kind if kind else ""}">{text}</div>'


def estimate_refused(reason: str) -> str:
    """Why nothing can be said of the job."""
    return f'<div class="lkf-estimate lkf-check lkf-poor">{spoken(reason)}</div>'
