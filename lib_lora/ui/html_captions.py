"""What the page shows of captions: each picture with its text to edit, tags to click, previews of bulk edits."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from lib_lora.train.absorb import Absorbed
from lib_lora.train.caption_store import Caption
from lib_lora.train.looking import Look
from lib_lora.ui.captioners import Progress
from lib_lora.ui.html_parts import number, own, word
from lib_lora.ui.html_pictures import press, thumbnail
from lib_lora.ui.spoken import spoken

TAGS = 60  # shown at first
SAMPLES = 5  # of a preview
_STATES = {"finished": "Finished.", "stopped": "Stopped.", "failed": "It failed:"}

NO_FOLDER = "There are no captions to show: the folder above cannot be used."


def mark(text: str) -> str:
    """A short name for a text, by which the server knows what a page had shown."""
    return hashlib.blake2b(text.encode("utf-8", errors="replace"), digest_size=8).hexdigest()


def grid(captions: Sequence[tuple[Caption, Look | None]], root: Path, saved: Sequence[tuple[str, int]] = ()) -> str:
    """Pictures with their captions in text fields.

    `saved` are (picture's name below root, number of the edit) that the page need not keep any more. Each grid has
    a mark of its own, by which the page knows a new one.
    """
    cards = "".join(_card(caption, look, root) for caption, look in captions)
    done = escape(json.dumps([list(one) for one in saved]))
    facts = f'data-lk-folder="{escape(str(root))}" data-lk-saved="{done}" data-lk-beat="{secrets.token_hex(6)}"'
    return f'<ul class="lk-view lk-captions" {facts}>{cards}</ul>'


def counts(captions: Sequence[Caption]) -> str:
    """How many have a caption."""
    have = sum(bool(one.text) for one in captions)
    return f'<div class="lk-view"><p>{word("With a caption:")} {number(have)} / {number(len(captions))}</p></div>'


def tags(found: Sequence[tuple[str, int]], chosen: str) -> str:
    """Tags with how many captions have each, to click; the rest is told as a number."""
    if not found:
        return ""
    buttons = "".join(_tag(tag, count, tag == chosen) for tag, count in found[:TAGS])
    rest = "".join(_tag(tag, count, tag == chosen) for tag, count in found[TAGS : TAGS * 10])
    title = f"<summary>{word('More tags')}</summary>"
    more = f'<details>{title}<div class="lk-tags notranslate">{rest}</div></details>' if rest else ""
    head = f"<h4>{word('Tags: click one to see its pictures')}</h4>"
    return f'<div class="lk-view">{head}<div class="lk-tags notranslate">{buttons}</div>{more}</div>'


def proposal(found: Sequence[Absorbed]) -> str:
    """What the trigger should absorb, each with a button; what tells of the picture is shown apart."""
    if not found:
        return f'<div class="lk-view"><p class="lk-note">{word("No tag is in most of the captions.")}</p></div>'
    own = "".join(_absorbed(one) for one in found if one.of_subject)
    other = "".join(_absorbed(one) for one in found if not one.of_subject)
    parts = [f"<h4>{word('Traits of the subject')}</h4><ul class='lk-absorb'>{own}</ul>" if own else ""]
    parts += [f"<h4>{word('Of the picture: better left in')}</h4><ul class='lk-absorb'>{other}</ul>" if other else ""]
    if own:
        names = json.dumps([one.tag for one in found if one.of_subject], ensure_ascii=False)
        parts.append(press("Remove all traits from the captions", "lorakit_absorb", names))
    return f'<div class="lk-view">{"".join(parts)}</div>'


def preview(changed: Sequence[tuple[Caption, str]]) -> str:
    """How many captions an operation changes, and some of them before and after."""
    if not changed:
        return f'<div class="lk-view"><p class="lk-note">{word("No caption would change.")}</p></div>'
    rows = "".join(
        f"<tr><th>{escape(one.picture.name)}</th><td><del>{_short(one.text)}</del></td><td>{_short(after)}</td></tr>"
        for one, after in changed[:SAMPLES]
    )
    head = f"<p>{word('Captions that would change:')} {number(len(changed))}</p>"
    table = f'<table class="lk-before-after notranslate"><tbody>{rows}</tbody></table>'
    return f'<div class="lk-view">{head}<div class="lk-scroll">{table}</div></div>'


def progress(now: Progress) -> str:
    """How far the writing of captions is; empty before the first run."""
    if not now.state:
        return ""
    if now.state == "running":
        share = now.done / now.total if now.total else 0.0
        head = f"{word('Writing captions:')} {number(now.done)} / {number(now.total)}"
        bar = f'<div class="lk-bar"><div style="width:{share:.1%}"></div></div>'
        return f'<div class="lk-view lk-box" role="status" data-lk-go-on="lorakit_captioning">{head}{bar}</div>'
    bad = " lk-bad" if now.state == "failed" else ""
    told = f" {spoken(now.message)}" if now.message else ""
    head = f"{word(_STATES[now.state])} {number(now.done)} / {number(now.total)}{told}"
    return f'<div class="lk-message{bad}" role="status">{head}</div>'


def options(names: Mapping[str, str]) -> str:
    """What each captioner needs, under the list: {name: why not, or what it fetches}."""
    rows = "".join(f"<li>{own(name)} <span>{spoken(told)}</span></li>" for name, told in names.items() if told)
    return f'<div class="lk-view"><ul class="lk-soft">{rows}</ul></div>' if rows else ""


def _card(one: Caption, look: Look | None, root: Path) -> str:
    name = one.picture.relative_to(root).as_posix()
    rows = max(3, min(8, len(one.text) // 34 + one.text.count("\n") + 1))
    where = (
        f'<span class="lk-soft">{word("From a table; saving makes a file")}</span>' if one.kept_in == "table" else ""
    )
    facts = f'data-lk-caption="{escape(name)}" data-lk-was="{mark(one.text)}"'
    return (
        f'<li class="lk-caption-card">{thumbnail(look, one.picture.name)}<label><span class="lk-name notranslate" '
        f'title="{escape(name)}">{escape(name)}</span><textarea {facts} rows="{rows}" spellcheck="false" '
        f'placeholder="No caption">{escape(one.text)}</textarea></label>{where}</li>'
    )


def _tag(tag: str, count: int, chosen: bool) -> str:
    label = f'<span class="lk-tag-name">{escape(tag[:60])}</span> {number(count)}'
    does = f'data-lk-press="lorakit_tag_filter" data-lk-value="{escape("" if chosen else tag)}"'
    pressed = ' aria-pressed="true"' if chosen else ' aria-pressed="false"'
    return f'<button type="button" class="lk-tag"{pressed} {does} title="{escape(tag)}">{label}</button>'


def _absorbed(one: Absorbed) -> str:
    button = press("Remove", "lorakit_absorb", json.dumps([one.tag], ensure_ascii=False), kind="lk-small")
    return f"<li>{button} {own(one.tag)} {number(f'{one.share:.0%}')}</li>"


def _short(text: str) -> str:
    return escape(text if len(text) <= 160 else text[:157] + "...") or "–"
