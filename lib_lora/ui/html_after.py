"""What the page shows of a run that has ended: its card, what it saved on the way, and comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from lib_lora.train.choose import Saved
from lib_lora.train.compare import BASE, STRENGTHS, Cell, Grid, ticked
from lib_lora.train.drawable import Drawable
from lib_lora.ui.comparing import Drawing
from lib_lora.ui.html_parts import button, fact, megabytes, number, own, shows, soft, word
from lib_lora.ui.html_samples import picture
from lib_lora.ui.spoken import spoken
from lib_lora.ui.thumbs import Thumbs

FINAL = "final"
SAVED = {"networks": "Saved networks", "embeddings": "Saved embeddings", "checkpoints": "Saved checkpoints"}
NOW = {
    "networks": "is the network now",
    "embeddings": "is the embedding now",
    "checkpoints": "is the checkpoint now",
}
ANEW = (
    "The buttons beside the saved networks begin a new run of that name with one of them. Its optimizer begins anew, "
    "and this run stays as it is."
)
CHOOSE = "(choose it in the webui's checkpoint list)"
NOTHING_LEFT = "None of its files is there any more, so there is nothing to compare."
NO_STRENGTH = "An embedding has no strength: each is drawn as it is. Every prompt must say its word:"


@dataclass(frozen=True)
class Result:
    """What there is to show of an ended run. `taken`: the step that was chosen as the finished file, if any.

    `checkpoint` names the file to choose in the webui's list, if it is one; `files` are the finished ones and their
    sizes in bytes, as users may read them; `drawable` is what can be compared by its label, `called` the words that
    call it where they are embeddings.
    """

    id: str
    name: str
    file: Path | None
    tag: str
    words: str
    weight: float
    preview: str
    saved: Sequence[Saved]
    taken: int | None
    why_not_continue: str
    why_not_compare: str
    prompts: Sequence[str]
    drawn: tuple[int, int, float]  # seed, steps, guidance
    more: tuple[str, int]  # name and steps of a run that goes on from here
    checkpoint: str = ""
    files: Sequence[tuple[str, int]] = ()
    drawable: Mapping[str, Drawable] = field(default_factory=dict)
    called: Sequence[str] = ()
    on: str = ""  # see training_on.form

    def labels(self) -> dict[str, Path]:
        """The networks there are, in order: what was saved on the way, then the finished file if it is another."""
        found = {f"step {one.step}": one.files[0] for one in self.saved}
        same = self.taken is not None and any(one.step == self.taken for one in self.saved)
        return found if self.file is None or same else {**found, FINAL: self.file}


def nothing() -> str:
    """While no run has ended."""
    return (
        '<section class="lk-box"><h3>Result</h3><p class="lk-note">When a run has finished, its card, a comparison of '
        "what it saved on the way and everything to do with it are here.</p></section>"
    )


def result(found: Result, thumbs: Thumbs) -> str:
    """The card, the networks that were saved, and the forms to compare and to go on."""
    return (
        f'<section class="lk-box" data-form="{escape(found.id)}" data-key="{escape(found.id)}">'
        f"<h3>{word('Result')} {own(found.name)}</h3>"
        f"{_card(found)}{_saved(found)}{_further(found)}{_compare(found)}</section>"
    )


def drawing(now: Drawing, run: str) -> str:
    """How far a comparison of this run is; empty if none of it is in hand and nothing is to be told."""
    if now.run != run or not (now.active or now.message):
        return ""
    if not now.active:
        return f'<div class="lk-message" role="status">{spoken(now.message)}</div>'
    share = now.done / max(now.total, 1)
    figures = f"{word('picture')} {number(now.done)} {word('of')} {number(now.total)}"
    return (
        f'<div class="lk-drawing lk-box" data-lk-busy="after"><p>{word("Drawing the comparison:")} {figures}</p>'
        f'<div class="lk-bar"><div style="width:{share:.1%}"></div></div>{button("Stop", {"do": "stop"}, kind="stop")}'
        "</div>"
    )


def grid(run: str, shown: Grid, thumbs: Thumbs, names: Sequence[str], kept: str = "") -> str:
    """A comparison as tables, one for each prompt, and buttons for the other comparisons of the run.

    `kept` says where the sheet with all pictures is; empty while there is none.
    """
    places = {(cell.table, cell.row, cell.column): (at, cell) for at, cell in enumerate(shown.cells())}
    head = "".join(f'<th scope="col">{_label(heading)}</th>' for heading in shown.columns())
    corner = "" if shown.words else "<td></td>"
    tables = []
    for table, prompt in enumerate(shown.prompts):
        rows = []
        for row, heading in enumerate(shown.rows()):
            found = (places.get((table, row, column)) for column in range(len(shown.columns())))
            filled = "".join(_cell(run, shown, *one, thumbs) for one in found if one)
            rows.append(f"<tr>{f'<th scope=row>{_label(heading)}</th>' if heading else ''}{filled}</tr>")
        tables.append(
            f'<h4 class="notranslate">{escape(prompt)}</h4>'
            f'<div class="lk-scroll" tabindex="0"><table class="lk-grid-table"><thead><tr>{corner}'
            f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        )
    others = "".join(shows(name, {"grid": name}, on=name != shown.name) for name in names) if len(names) > 1 else ""
    more = f'<div class="lk-buttons">{word("Comparisons:")} {others}</div>' if others else ""
    told = f'<p class="lk-note">{word("Kept as")} <code>{escape(kept)}</code></p>' if kept else ""
    return f'<section class="lk-box"><h3>Comparison</h3>{more}{"".join(tables)}{told}</section>'


def _cell(run: str, shown: Grid, at: int, cell: Cell, thumbs: Thumbs) -> str:
    """A picture in its place; that of the base model stands beside all networks."""
    url = thumbs.url(shown.picture(cell))
    look = json.dumps({"run": run, "grid": shown.name, "cell": at})
    inside = picture(url, "" if cell.strength else word(BASE), look, str(at)) if url else ""
    spans = "" if cell.strength else f' rowspan="{len(shown.labels)}" style="vertical-align:top"'
    return f"<td{spans}>{inside}</td>"


def _card(found: Result) -> str:
    if found.file is None:
        return '<p class="lk-note">The run ended before its file was written: keep one of what it saved.</p>'
    image = (
        f'<img src="{found.preview}" alt="">' if found.preview else f'<p class="lk-soft">{word("no picture yet")}</p>'
    )
    facts = fact("Checkpoint", f"<code>{escape(found.checkpoint)}</code>", soft(CHOOSE)) if found.checkpoint else ""
    call = f"{found.words} {found.tag}".strip()
    said = "Its LoRA in a prompt" if found.checkpoint else "In a prompt"
    facts += fact(said if found.tag else "In a prompt", f"<code>{escape(call)}</code>") if call else ""
    for path, size in found.files:
        facts += fact("File", f"<code>{escape(path)}</code>", number(megabytes(size)))
    prompt = json.dumps({"tag": found.tag, "words": found.words})
    send = button("Send the tag to txt2img", None, data={"go": prompt}, kind="primary") if found.tag else ""
    copy = button("Copy", None, data={"copy": call}) if found.tag else ""
    weight = (
        '<label class="lk-field"><span>Preferred weight</span>'
        f'<input name="weight" type="number" step="0.05" min="-10" max="10" value="{found.weight:g}"></label>'
        + button("Set", {"do": "weight", "run": found.id}, title="Written to the card; a click on the card uses it")
        if found.tag.startswith("<lora:")
        else ""
    )
    return (
        f'<div class="lk-card"><div class="lk-cover">{image}</div>'
        f'<div class="lk-grow"><dl class="lk-facts">{facts}</dl>'
        f'<div class="lk-buttons">{send}{copy}{weight}</div></div></div>'
        '<p class="lk-note">Open any sample or compared picture to make it the card\'s.</p>'
    )


def _saved(found: Result) -> str:
    labels = list(found.labels())
    if not labels or (labels == [FINAL] and FINAL not in found.drawable and found.why_not_continue):
        return ""
    sizes = {f"step {one.step}": one.size for one in found.saved}
    steps = {f"step {one.step}": one.step for one in found.saved}
    kind = "checkpoints" if found.checkpoint else "embeddings" if found.called else "networks"
    rows = []
    for label in labels:
        step = steps.get(label)
        chosen = label == FINAL or (step is not None and step == found.taken)
        size = megabytes(sizes[label]) if label in sizes else ""
        keep = button(
            "Keep this one", {"do": "keep", "run": found.id, "step": step}, ask="Press again to make it the final one"
        )
        mark = f'<span class="lk-mark">{word(NOW[kind])}</span>' if chosen else keep
        go = {"do": "continue", "run": found.id, "label": label}
        on = button("Continue training from here", go) if not found.why_not_continue else ""
        rows.append(
            f'<tr data-key="{escape(label)}"><td>{_tick(found, label)}</td><td>{number(size)}</td>'
            f'<td><div class="lk-actions">{mark}</div></td><td>{on}</td></tr>'
        )
    table = f'<div class="lk-scroll"><table class="lk-table">{"".join(rows)}</table></div>'
    return f"<h4>{SAVED[kind]}</h4>{table}{_delete(found)}"


def _tick(found: Result, label: str) -> str:
    """A network's name, with a box where it can be compared."""
    if label not in found.drawable:
        return _label(label)
    checked = " checked" if label in ticked(list(found.drawable)) else ""
    box = f'<input type="checkbox" name="labels" value="{escape(label)}"{checked}>'
    return f"<label>{box} {_label(label)}</label>"


def _delete(found: Result) -> str:
    others = [one for one in found.saved if one.step != found.taken]
    if not others or found.file is None:  # of what there is, nothing is chosen yet
        return ""
    size = megabytes(sum(one.size for one in others))
    names = ", ".join(path.name for one in others for path in one.files)
    asks = {"ask": "Press again to delete:", "ask_more": f"{names} ({size})"}
    do = {"do": "delete", "run": found.id, "steps": [one.step for one in others]}
    return f'<div class="lk-buttons">{button("Delete the others", do, kind="stop", **asks)}</div>'


def _further(found: Result) -> str:
    """Train on as this run, or begin another with one of its networks."""
    if found.why_not_continue:
        anew = f'<p class="lk-note">{word(found.why_not_continue)}</p>'
    else:
        name, steps = found.more
        anew = (
            '<div class="lk-fields"><label class="lk-field" data-key="more_name"><span>Name of a new run</span>'
            f'<input name="more_name" value="{escape(name)}" maxlength="200"></label>'
            '<label class="lk-field" data-key="more_steps"><span>Steps of a new run</span>'
            f'<input name="more_steps" type="number" min="1" value="{steps}"></label></div>'
            f'<p class="lk-note">{ANEW}</p>'
        )
    return f"<h4>Train further</h4>{found.on}{anew}" if found.labels() or found.on else ""


def _compare(found: Result) -> str:
    if found.why_not_compare or not found.drawable:
        return f'<h4>Compare</h4><p class="lk-note">{spoken(found.why_not_compare or NOTHING_LEFT)}</p>'
    seed, steps, cfg = found.drawn
    prompts = escape("\n".join(found.prompts))
    strengths = ", ".join(f"{value:g}" for value in STRENGTHS)

    def field(label: str, name: str, value: str, more: str = 'type="number"') -> str:
        box = f'<input name="{name}" value="{value}" {more}>'
        return f'<label class="lk-field" data-key="{name}"><span>{label}</span>{box}</label>'

    return (
        '<h4>Compare</h4><label class="lk-field lk-wide" data-key="prompts"><span>Prompts, one a line</span>'
        f'<textarea name="prompts" rows="{max(len(found.prompts), 2)}">{prompts}</textarea></label>'
        '<div class="lk-fields">'
        + ("" if found.called else field("Strengths", "strengths", strengths, ""))
        + field("Seed", "seed", str(seed))
        + field("Steps", "steps", str(steps), 'type="number" min="1" max="150"')
        + field("Guidance", "cfg", f"{cfg:g}", 'type="number" min="1" max="50" step="0.5"')
        + "</div><div class='lk-buttons'>"
        + button("Compare", {"do": "compare", "run": found.id}, kind="primary")
        + button("Check all", None, data={"tick": "labels", "tick-to": "all"})
        + button("Check none", None, data={"tick": "labels", "tick-to": "none"})
        + "</div>"
        + _draws(found.called)
    )


def _draws(called: Sequence[str]) -> str:
    """What a comparison draws."""
    if not called:
        return (
            '<p class="lk-note">Draws every checked network at every strength with every prompt. Strength 0 is the '
            "base model alone.</p>"
        )
    words = f" {word('or')} ".join(f"<code>{escape(one)}</code>" for one in called)
    draws = "Draws every checked embedding with every prompt."
    return f'<p class="lk-note">{draws}</p><p class="lk-note">{word(NO_STRENGTH)} {words}</p>'


def _label(label: str) -> str:
    """ "step 200" or "strength 0.8" with the number in a node of its own."""
    name, _, figure = label.partition(" ")
    return f"{word(name)} {number(figure)}" if figure[-1:].isdigit() else word(label)
