"""What the page shows of a run that has ended: its card, what it saved on the way, and comparisons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from lib_lora.train.choose import Saved
from lib_lora.train.compare import STRENGTHS, Grid
from lib_lora.ui.comparing import Drawing
from lib_lora.ui.html_parts import button, fact, megabytes, number, own, shows, word
from lib_lora.ui.html_samples import picture
from lib_lora.ui.spoken import spoken
from lib_lora.ui.thumbs import Thumbs

FINAL = "final"
CHECKED = 6  # networks that are compared unless the user says otherwise


@dataclass(frozen=True)
class Result:
    """What there is to show of an ended run. `taken`: the step that was chosen as the finished file, if any."""

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

    def labels(self) -> dict[str, Path]:
        """What can be compared, in order: what was saved on the way, then the finished file if it is another."""
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
        f'<section class="lk-box" data-form="{escape(found.id)}"><h3>{word("Result")} {own(found.name)}</h3>'
        f"{_card(found)}{_saved(found)}{_compare(found)}</section>"
    )


def drawing(now: Drawing, run: str) -> str:
    """How far a comparison of this run is; empty if none of it is in hand and nothing is to be told."""
    if now.run != run or not (now.active or now.message):
        return ""
    if not now.active:
        return f'<p class="lk-note" role="status">{spoken(now.message)}</p>'
    share = now.done / max(now.total, 1)
    figures = f"{word('picture')} {number(now.done)} {word('of')} {number(now.total)}"
    return (
        f'<div class="lk-drawing" data-lk-busy="after"><p>{word("Drawing the comparison:")} {figures}</p>'
        f'<div class="lk-bar"><div style="width:{share:.1%}"></div></div>{button("Stop", {"do": "stop"}, kind="stop")}'
        "</div>"
    )


def grid(run: str, shown: Grid, thumbs: Thumbs, names: Sequence[str]) -> str:
    """A comparison as tables, one for each prompt, and buttons for the other comparisons of the run."""
    places = {(cell.table, cell.row, cell.column): at for at, cell in enumerate(shown.cells())}
    cells = shown.cells()
    head = "".join(f'<th scope="col">{word("strength")} {number(f"{s:g}")}</th>' for s in shown.strengths)
    tables = []
    for table, prompt in enumerate(shown.prompts):
        rows = []
        for row, label in enumerate(shown.labels):
            filled = ""
            for column in range(len(shown.strengths)):
                at = places[table, row, column]
                url = thumbs.url(shown.picture(cells[at]))
                look = json.dumps({"run": run, "grid": shown.name, "cell": at})
                filled += f"<td>{picture(url, '', look, str(at)) if url else ''}</td>"
            rows.append(f'<tr><th scope="row">{_label(label)}</th>{filled}</tr>')
        tables.append(
            f'<h4 class="notranslate">{escape(prompt)}</h4>'
            f'<div class="lk-scroll" tabindex="0"><table class="lk-grid-table"><thead><tr><td>'
            f"</td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        )
    others = "".join(shows(name, {"grid": name}, on=name != shown.name) for name in names) if len(names) > 1 else ""
    more = f'<div class="lk-buttons">{word("Comparisons:")} {others}</div>' if others else ""
    kept = f'<p class="lk-note">{word("Kept as")} <code>{escape(str(shown.sheet))}</code></p>' if _there(shown) else ""
    return f'<section class="lk-box"><h3>Comparison</h3>{more}{"".join(tables)}{kept}</section>'


def _card(found: Result) -> str:
    if found.file is None:
        return '<p class="lk-note">The run ended before its file was written: keep one of what it saved.</p>'
    image = (
        f'<img src="{found.preview}" alt="">' if found.preview else f'<p class="lk-soft">{word("no picture yet")}</p>'
    )
    facts = fact("In a prompt", f"<code>{escape(f'{found.words} {found.tag}'.strip())}</code>") if found.tag else ""
    facts += fact("File", f"<code>{escape(str(found.file))}</code>")
    facts += fact("Size", number(megabytes(found.file.stat().st_size))) if found.file.is_file() else ""
    prompt = json.dumps({"tag": found.tag, "words": found.words})
    send = button("Send the tag to txt2img", None, data={"go": prompt}, kind="primary") if found.tag else ""
    copy = button("Copy", None, data={"copy": f"{found.words} {found.tag}".strip()}) if found.tag else ""
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
    if not labels:
        return ""
    sizes = {f"step {one.step}": one.size for one in found.saved}
    steps = {f"step {one.step}": one.step for one in found.saved}
    rows = []
    for label in labels:
        step = steps.get(label)
        chosen = label == FINAL or (step is not None and step == found.taken)
        size = megabytes(sizes[label]) if label in sizes else ""
        checked = " checked" if label in labels[-CHECKED:] else ""
        keep = button(
            "Keep this one", {"do": "keep", "run": found.id, "step": step}, ask="Press again to make it the network"
        )
        mark = f'<span class="lk-mark">{word("is the network now")}</span>' if chosen else keep
        go = {"do": "continue", "run": found.id, "label": label}
        on = button("Continue training from here", go) if not found.why_not_continue else ""
        rows.append(
            f'<tr data-key="{escape(label)}"><td><label><input type="checkbox" name="labels" value="{escape(label)}"'
            f"{checked}> {_label(label)}</label></td><td>{number(size)}</td>"
            f'<td><div class="lk-actions">{mark}{on}</div></td></tr>'
        )
    return (
        f'<h4>Saved networks</h4><div class="lk-scroll"><table class="lk-table">{"".join(rows)}</table></div>'
        f"{_delete(found)}{_continue(found)}"
    )


def _delete(found: Result) -> str:
    others = [one for one in found.saved if one.step != found.taken]
    if not others or found.file is None:  # of what there is, nothing is chosen yet
        return ""
    size = megabytes(sum(one.size for one in others))
    names = ", ".join(path.name for one in others for path in one.files)
    asks = {"ask": "Press again to delete:", "ask_more": f"{names} ({size})"}
    do = {"do": "delete", "run": found.id, "steps": [one.step for one in others]}
    return f'<div class="lk-buttons">{button("Delete the others", do, kind="stop", **asks)}</div>'


def _continue(found: Result) -> str:
    if found.why_not_continue:
        return (
            f'<p class="lk-note">{word("Training cannot go on from these files.")} {word(found.why_not_continue)}</p>'
        )
    name, steps = found.more
    return (
        '<div class="lk-fields"><label class="lk-field"><span>To continue: name</span>'
        f'<input name="more_name" value="{escape(name)}" maxlength="200"></label>'
        '<label class="lk-field"><span>To continue: steps</span>'
        f'<input name="more_steps" type="number" min="1" value="{steps}"></label></div>'
    )


def _compare(found: Result) -> str:
    if found.why_not_compare:
        return f'<h4>Compare</h4><p class="lk-note">{word(found.why_not_compare)}</p>'
    seed, steps, cfg = found.drawn
    prompts = escape("\n".join(found.prompts))
    strengths = ", ".join(f"{value:g}" for value in STRENGTHS)

    def field(label: str, name: str, value: str, more: str = 'type="number"') -> str:
        return f'<label class="lk-field"><span>{label}</span><input name="{name}" value="{value}" {more}></label>'

    return (
        '<h4>Compare</h4><label class="lk-field lk-wide"><span>Prompts, one a line</span>'
        f'<textarea name="prompts" rows="{max(len(found.prompts), 2)}">{prompts}</textarea></label>'
        '<div class="lk-fields">'
        + field("Strengths", "strengths", strengths, "")
        + field("Seed", "seed", str(seed))
        + field("Steps", "steps", str(steps), 'type="number" min="1" max="150"')
        + field("Guidance", "cfg", f"{cfg:g}", 'type="number" min="1" max="50" step="0.5"')
        + "</div><div class='lk-buttons'>"
        + button("Compare", {"do": "compare", "run": found.id}, kind="primary")
        + '</div><p class="lk-note">Draws every checked network at every strength with every prompt. Strength 0 is the '
        "base model alone.</p>"
    )


def _label(label: str) -> str:
    """ "step 200" with the number in a node of its own."""
    name, _, step = label.partition(" ")
    return f"{word(name)} {number(step)}" if step.isdigit() else word(label)


def _there(shown: Grid) -> bool:
    return shown.sheet.is_file()
