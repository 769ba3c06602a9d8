"""What the captions of the Train page do, on plain values: shown, saved, changed in bulk, written by captioners."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from lib_lora.errors import BadConfig, LoraError
from lib_lora.train.absorb import absorbed
from lib_lora.train.caption_edit import Edit, edited, tag_counts, tags_of
from lib_lora.train.caption_ops import tag_name
from lib_lora.train.caption_store import (
    Caption,
    changes,
    come_back,
    last_operation,
    read_captions,
    require_lasting,
    undo,
    write_captions,
)
from lib_lora.train.looking import Looker
from lib_lora.ui import html_captions
from lib_lora.ui.captioners import MODES, Captioner, CaptionRun
from lib_lora.ui.html_captions import mark
from lib_lora.ui.html_parts import number, word
from lib_lora.ui.html_pictures import state_of
from lib_lora.ui.picture_page import folder_of
from lib_lora.ui.trainer import Trainer

PAGE = 12
BACK = "Not emptied, for a table has these captions and they would come back; take them out of that table:"
MAX_EDITS = 5_000_000  # signs of one message from the browser


@dataclass(frozen=True)
class Wish:
    """What a page looks at: the folder's text, page of the grid, tag to filter by, and "trigger, class"."""

    text: str = ""
    page: int = 0
    tag: str = ""
    stays: str = ""


@dataclass
class View:
    """What the page shows of it."""

    status: str = ""
    tags: str = ""
    grid: str = ""
    place: str = ""
    page: int = 0
    pages: int = 1
    tag: str = ""
    absorb: str = ""
    undo: str = ""
    in_tables: int = 0
    state: str = ""


@dataclass
class Edits:
    """Texts that a browser sent, and what became of them: (name, number) of those that need not be kept any more."""

    saved: list[tuple[str, int]] = field(default_factory=list)
    files: int = 0
    refused: list[str] = field(default_factory=list)
    back: list[str] = field(default_factory=list)  # emptied, but a table has them


class Captions:
    """The captions of whatever folder the page names."""

    def __init__(self, trainer: Trainer, looker: Looker, offered: Callable[[], Sequence[Captioner]]) -> None:
        self.trainer = trainer
        self.looker = looker
        self.offered = offered
        self.run = CaptionRun()

    def view(self, wish: Wish, saved: Sequence[tuple[str, int]] = ()) -> View:
        """The folder's captions. Raises LoraError."""
        if not wish.text.strip():
            return View()
        folder = self.folder(wish.text)
        captions = read_captions(folder)
        found = tag_counts(one.text for one in captions).most_common()
        tag = wish.tag if any(tag_name(wish.tag) == tag_name(name) for name, _ in found) else ""
        chosen = [one for one in captions if not tag or _has(one.text, tag)]
        pages = max(1, -(-len(chosen) // PAGE))
        page = min(max(wish.page, 0), pages - 1)
        shown = [(one, self.looker.look(one.picture)) for one in chosen[page * PAGE : (page + 1) * PAGE]]
        place = f"{word('Page')} {number(page + 1)} / {number(pages)}" if pages > 1 else ""
        trigger, _, class_word = wish.stays.partition(",")
        return View(
            status=html_captions.counts(captions) if captions else "",
            tags=html_captions.tags(found, tag),
            grid=html_captions.grid(shown, folder, saved),
            place=f'<div class="lk-view lk-place">{place}</div>',
            page=page,
            pages=pages,
            tag=tag,
            absorb=html_captions.proposal(
                absorbed([one.text for one in captions], trigger.strip(), class_word.strip())
            ),
            undo=last_operation(folder),
            in_tables=sum(one.kept_in == "table" for one in captions),
            state=state_of((one.picture, one.text) for one in captions),
        )

    def folder(self, text: str) -> Path:
        """See `picture_page.folder_of`."""
        return folder_of(self.trainer, text)

    def save(self, message: str) -> Edits:
        """Save what was typed: [{"folder", "name", "was", "text", "n"}, ...] as JSON.

        A caption that is no longer what the page had shown is left alone and named; the page keeps what was typed.
        Raises LoraError.
        """
        done = Edits()
        by_folder: dict[Path, list[Mapping[str, Any]]] = {}
        for one in _edits(message):
            by_folder.setdefault(self.folder(one["folder"]), []).append(one)
        for folder, edits in by_folder.items():
            known = {one.picture.relative_to(folder).as_posix(): one for one in read_captions(folder)}
            wanted: dict[Path, str] = {}
            for edit in edits:
                now = known.get(edit["name"])
                if now is None or (mark(now.text) != edit["was"] and now.text != edit["text"]):
                    done.refused.append(edit["name"])
                    continue
                if now.text != edit["text"]:
                    wanted[now.picture] = edit["text"]
                done.saved.append((edit["name"], edit["n"]))
            for picture in come_back(wanted):
                done.back.append(picture.name)
                del wanted[picture]
            done.files += write_captions(folder, wanted, "Edited by hand")
        return done

    def bulk(self, text: str, edit: Edit) -> list[tuple[Caption, str]]:
        """What an operation would change. Raises LoraError."""
        captions = read_captions(self.folder(text))
        return changes(captions, edited([one.text for one in captions], edit))

    def apply(self, text: str, edit: Edit, what: str) -> int:
        """Do it; how many files changed. Raises LoraError."""
        texts = {one.picture: new for one, new in self.bulk(text, edit)}
        require_lasting(texts)
        return write_captions(self.folder(text), texts, what)

    def remove_tags(self, text: str, tags: str) -> int:
        """Remove tags (a JSON list) from every caption; how many files changed. Raises LoraError."""
        try:
            names = json.loads(tags)
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise BadConfig(f"{tags[:80]!r} is no list of tags; press the button once more")
        return self.apply(text, Edit("remove", ", ".join(names)), f"Remove tags: {', '.join(names)[:80]}")

    def to_files(self, text: str) -> int:
        """Give every caption of a table a file of its own; how many. Raises LoraError."""
        folder = self.folder(text)
        tables = {one.picture: one.text for one in read_captions(folder) if one.kept_in == "table"}
        return write_captions(folder, tables, "Captions of the table into files")

    def take_back(self, text: str) -> str:
        """Undo the last operation; a message as HTML. Raises LoraError."""
        done = undo(self.folder(text))
        left = f" {word('Changed since and left alone:')} {escape(', '.join(done.left[:10]))}" if done.left else ""
        return said("Taken back, files:", done.files, f"({word(done.what)}).{left}")

    def describe(self, text: str, name: str, mode: str, options: tuple[str, bool]) -> None:
        """Let a captioner write captions in the background; `options`: what each begins with, may it download.

        Raises LoraError.
        """
        begin, may_download = options
        captioner = next((one for one in self.offered() if one.name == name), None)
        if captioner is None:
            raise BadConfig(f"{name!r} cannot write captions here; choose one of the list")
        if why := captioner.available():
            raise BadConfig(f"{name}: {why}")
        fetched = captioner.downloads()
        if fetched and not may_download:
            raise BadConfig(f"{name} has to download {fetched} first; tick the box to allow it, then press Write again")
        if self.trainer.status().state == "running":
            raise BadConfig("a network is being trained; wait for it or pause it, then press Write again")
        folder = self.folder(text)
        kind = next((key for key, label in MODES.items() if mode in (key, label)), mode)
        self.run.start(captioner, folder, read_captions(folder), kind, begin)


def said(words: str, figure: int | None = None, more: str = "") -> str:
    """A message as HTML; `more` is HTML already."""
    figures = f" {number(figure)}" if figure is not None else ""
    return f'<div class="lk-message" role="status">{word(words)}{figures} {more}</div>'


def saved_message(done: Edits) -> str:
    """What became of a save, as HTML; empty if there was nothing to do."""
    told = said("Captions saved:", done.files) if done.files else ""
    if done.refused:
        names = escape(", ".join(done.refused[:10]))
        words = word("Changed elsewhere meanwhile, so not saved; your text is still here, save again to use it:")
        told += f'<div class="lk-message lk-bad" role="alert">{words} {names}</div>'
    if done.back:
        names = escape(", ".join(done.back[:10]))
        told += f'<div class="lk-message lk-bad" role="alert">{word(BACK)} {names}</div>'
    return told


def _edits(message: str) -> list[Mapping[str, Any]]:
    """The edits of a message. Raises BadConfig if it is none."""
    if not message.strip():
        return []
    kinds = {"folder": str, "name": str, "was": str, "text": str, "n": int}
    try:
        found = json.loads(message) if len(message) <= MAX_EDITS else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and all(isinstance(one.get(name), kind) for name, kind in kinds.items()) for one in found
    ):
        raise BadConfig(f"{message[:80]!r} are no captions; copy what you typed, then reload the page")
    return found


def _has(caption: str, tag: str) -> bool:
    return any(tag_name(tag) == tag_name(one) for line in caption.split("\n") for one in tags_of(line))


def caught(act: Callable[[], str]) -> str:
    """What an action says, or the error for the user, as HTML."""
    from lib_lora.ui import html

    try:
        return act()
    except LoraError as error:
        return html.message(str(error), True)
