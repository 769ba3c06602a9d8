"""What the page shows of a folder of pictures: counts, warnings with what to do, small pictures."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from lib_lora.train.looking import Look
from lib_lora.train.survey import ADVICE, PROBLEMS, Picture, Survey
from lib_lora.ui.html_parts import number, own, word
from lib_lora.ui.spoken import spoken

GRAVE = ("corrupt", "small", "blurred", "twin", "shared")  # the others are only told
_NAMES = 6  # of one group


def data_url(look: Look | None) -> str:
    """A look's thumbnail as a data: URL; empty if there is none."""
    return "data:image/jpeg;base64," + base64.b64encode(look.thumbnail).decode() if look and look.thumbnail else ""


def thumbnail(look: Look | None, name: str) -> str:
    """The small picture, or a place of its size while there is none."""
    url = data_url(look)
    return (
        f'<img src="{url}" alt="{escape(name)}">' if url else '<span class="lk-no-picture" aria-hidden="true"></span>'
    )


def press(label: str, target: str, value: str, title: str = "", **more: str) -> str:
    """A button that sends `value` through the hidden textbox and button `target` (javascript/lorakit_captions.js).

    Keywords: `kind` (a class of its own), `described_by` (the id of what tells it from others of the same label).
    """
    said = f' title="{escape(title)}"' if title else ""
    said += f' aria-describedby="{more["described_by"]}"' if "described_by" in more else ""
    does = f'data-lk-press="{target}" data-lk-value="{escape(value)}"'
    return f'<button type="button" class="lk-button {more.get("kind", "")}" {does}{said}>{escape(label)}</button>'


def shows(text: str, step: str, content: str, state: str = "") -> str:
    """Content that says for which folder (as typed) it is, and in which state (see `state_of`).

    javascript presses the hidden button `<step>_open` where the page says another folder: gradio 3 drops what is typed
    while it waits for an answer, so the last letters may never have been sent. Where two steps show different states
    of one folder, it presses `<step>_sync` of both.
    """
    return f'<div data-lk-shows="{escape(text)}" data-lk-step="{step}" data-lk-state="{state}">{content}</div>'


def state_of(pictures: Iterable[tuple[Path, str]]) -> str:
    """A short name for a set of pictures (path, caption): another one where any of them differs."""
    found = hashlib.blake2b(digest_size=8)
    for path, caption in pictures:
        found.update(f"{path}\0{caption}\0".encode("utf-8", errors="replace"))
    return found.hexdigest()


def summary(found: Survey) -> str:
    """Counts, sizes, folders with repeats, problems and advice."""
    good = [one for one in found.pictures if "corrupt" not in one.problems]
    parts = [_counts(found, good), _folders(found), _problems(found), _twins(found)]
    parts += [f'<p class="lk-advice">{word(ADVICE[name])}</p>' for name in found.advice]
    parts += [f'<p class="lk-advice">{spoken(note)}</p>' for note in found.notes]
    if found.unseen:
        parts.append(
            '<p class="lk-note" role="status" data-lk-go-on="lorakit_pictures_more">'
            f"{word('Looking at the pictures, to go:')} {number(found.unseen)}</p>"
        )
    return f'<div class="lk-view">{"".join(parts)}</div>'


def grid(pictures: Iterable[Picture], root: Path) -> str:
    """Small pictures with what is known of each; empty without any."""
    cards = "".join(_card(picture, root) for picture in pictures)
    return f'<ul class="lk-view lk-pictures">{cards}</ul>' if cards else ""


def sizes_of(pictures: Sequence[Picture]) -> str:
    """The sizes of a set: one, or the smallest and the largest by area."""
    sizes = sorted({one.header.size for one in pictures}, key=lambda size: (size[0] * size[1], size))
    return " – ".join(f"{width} × {height}" for width, height in dict.fromkeys((sizes[0], sizes[-1]))) if sizes else ""


def _counts(found: Survey, good: Sequence[Picture]) -> str:
    if not good:
        return ""
    told = [
        ("Pictures", str(len(good))),
        ("Sizes", sizes_of(good)),
        ("With a caption", f"{sum(bool(one.caption) for one in good)} / {len(good)}"),
    ]
    if found.visits != len(good):
        told.insert(1, ("Visits in an epoch", str(found.visits)))
    facts = "".join(f'<div class="lk-fact"><dt>{label}</dt><dd>{number(value)}</dd></div>' for label, value in told)
    return f'<dl class="lk-facts">{facts}</dl>'


def _folders(found: Survey) -> str:
    if len(found.parts) < 2 and all(part.repeats == 1 for part in found.parts):
        return ""
    rows = "".join(
        f"<tr><td>{own(part.path.name)}</td><td>{number(part.pictures)}</td><td>{number(part.repeats)}</td></tr>"
        for part in found.parts
    )
    heads = "".join(f"<th>{label}</th>" for label in ("Folder", "Pictures", "Repeats"))
    return f'<div class="lk-scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _problems(found: Survey) -> str:
    rows = "".join(
        f'<li class="lk-{"warned" if name in GRAVE else "told"}"><b>{number(count)} {word(label)}</b> '
        f'<span class="lk-soft">{escape(help)}</span></li>'
        for name, (label, help) in PROBLEMS.items()
        if (count := found.count(name))
    )
    return f'<ul class="lk-problems">{rows}</ul>' if rows else ""


def _twins(found: Survey) -> str:
    rows = []
    for group in found.groups[:20]:
        more = f" + {len(group) - _NAMES}" if len(group) > _NAMES else ""
        rows.append(f"<li>{escape(' = '.join(path.name for path in group[:_NAMES]) + more)}</li>")
    if not rows:
        return ""
    return f"<details><summary>{word('Which pictures are alike')}</summary><ul>{''.join(rows)}</ul></details>"


def _card(picture: Picture, root: Path) -> str:
    name, header = picture.path.name, picture.header
    badges = "".join(
        f'<span class="lk-badge{" lk-warned" if problem in GRAVE else ""}" title="{escape(PROBLEMS[problem][1])}">'
        f"{PROBLEMS[problem][0]}</span>"
        for problem in picture.problems
    )
    size = f"{header.size[0]} × {header.size[1]}" if not header.broken else ""
    caption = escape(picture.caption.split("\n")[0]) if picture.caption else '<i class="lk-soft">No caption</i>'
    inside = picture.path.relative_to(root).as_posix()
    label = f"lk-picture-{hashlib.sha1(inside.encode('utf-8', 'replace')).hexdigest()[:12]}"
    tells = "Puts the picture aside; it can be brought back."
    away = press("Remove", "lorakit_remove", inside, tells, kind="lk-small", described_by=label)
    return (
        f'<li class="lk-picture">{thumbnail(picture.look, name)}'
        f'<div class="lk-name notranslate" id="{label}" title="{escape(name)}">{escape(name)}</div>'
        f'<div class="lk-line"><span class="lk-soft lk-number">{size}</span>{away}</div>'
        f'<div class="lk-caption" title="{escape(picture.caption)}">{caption}</div>'
        f'<div class="lk-badges">{badges}</div></li>'
    )
