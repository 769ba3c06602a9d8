"""What the first step of the Train page does, on plain values: a folder shown, pictures put aside, uploads saved."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from html import escape
from pathlib import Path
from typing import Any

from lib_lora.errors import BadDataset, LoraError
from lib_lora.train.looking import Looker
from lib_lora.train.picture_set import Saved, new_folder, put_back, remove, removed_count, save_uploads
from lib_lora.train.survey import Picture, Survey, survey
from lib_lora.ui import html, html_pictures
from lib_lora.ui.html_parts import number, word
from lib_lora.ui.spoken import spoken
from lib_lora.ui.trainer import Trainer
from lib_lora.ui.uploading import uploads

PAGE = 24
SECONDS = 2.5  # that one answer takes at most; the browser then asks for the rest
FIELD = "the folder of pictures"
STEP = "lorakit_pictures"
INVITATION = html_pictures.shows(
    "",
    STEP,
    '<div class="lk-view"><p class="lk-note">Name a folder, or drop pictures into the field beside it.</p></div>',
)


@dataclass
class View:
    """What the page shows of a folder."""

    summary: str = INVITATION
    grid: str = ""
    place: str = ""
    page: int = 0
    pages: int = 1
    aside: int = 0
    filled: bool = False
    state: str = ""


class Pictures:
    """What the step's events do, on plain values."""

    def __init__(self, trainer: Trainer, looker: Looker) -> None:
        self.trainer = trainer
        self.looker = looker
        self._moving = threading.Lock()  # two pictures put aside at once would forget one of them

    def view(self, text: str, page: int = 0, only_bad: bool = False) -> View:
        """The folder as it is now. What cannot be shown is told in the summary."""
        view = self._view(text, page, only_bad) if text.strip() else View()
        view.summary = html_pictures.shows(text, STEP, view.summary, view.state) if text.strip() else INVITATION
        return view

    def _view(self, text: str, page: int, only_bad: bool) -> View:
        try:
            folder = self.folder(text)
            found = survey(folder, self.trainer.base().resolution, self.looker, SECONDS)
        except LoraError as error:
            return View(summary=html.message(str(error), True))
        chosen = [one for one in found.pictures if one.problems or not only_bad]
        pages = max(1, -(-len(chosen) // PAGE))
        page = min(max(page, 0), pages - 1)
        shown = self._looked(chosen[page * PAGE : (page + 1) * PAGE])
        place = f"{word('Page')} {number(page + 1)} / {number(pages)}" if pages > 1 else ""
        return View(
            html_pictures.summary(found), html_pictures.grid(shown, folder),
            f'<div class="lk-view lk-place">{place}</div>', page, pages, _aside(found), bool(found.pictures),
            html_pictures.state_of((one.path, one.caption) for one in found.pictures),
        )  # fmt: skip

    def folder(self, text: str) -> Path:
        """See `folder_of`."""
        return folder_of(self.trainer, text)

    def remove(self, text: str, name: str) -> str:
        """Put the picture of this name (as it is listed) aside; a message. Raises LoraError."""
        folder = self.folder(text)
        found = survey(folder, self.trainer.base().resolution, self.looker, 0)
        for one in found.pictures:
            if one.path.relative_to(folder).as_posix() == name:
                with self._moving:
                    remove(one.path)
                return _said("Put aside:", one.path.name)
        raise BadDataset(f"{name!r} is not in the folder any more; nothing was removed")

    def put_back(self, text: str) -> str:
        """Bring back the picture put aside last, of the folder or its sub-folders; a message. Raises LoraError."""
        folder = self.folder(text)
        found = survey(folder, self.trainer.base().resolution, self.looker, 0)
        with self._moving:
            for place in _places(found):
                if removed_count(place):
                    return _said("Brought back:", put_back(place))
        return _said("Nothing is left to bring back.", "")

    def upload(self, given: Any, text: str) -> tuple[str, str]:
        """Save pictures and captions from the browser: the folder they are in, and a message. Raises LoraError.

        They join an earlier upload if the page shows one; any other folder of the user's own is left as it is.
        """
        good, bad = uploads(given)
        home = self.trainer.home() / "pictures"
        folder = self._own(text, home) or new_folder(home, date.today())
        saved = save_uploads(good, folder)
        saved.refused += [(name, "not sent by the browser") for name in bad]
        if not saved.files and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        told = _said("Pictures saved:", str(len(saved.files))) if saved.files else ""
        told += _said("Captions saved:", str(saved.captions)) if saved.captions else ""
        return str(folder) if saved.files else text, told + _refused(saved)

    def is_upload(self, text: str) -> bool:
        """Whether a text names a folder of uploads."""
        return self._own(text, self.trainer.home() / "pictures") is not None

    def _own(self, text: str, home: Path) -> Path | None:
        """The folder that the page shows, if it is one of uploads."""
        try:
            folder = self.folder(text) if text.strip() else None
        except LoraError:
            return None
        return folder if folder is not None and folder.parent == home.resolve() else None

    def _looked(self, pictures: Sequence[Picture]) -> list[Picture]:
        return [
            one if one.look or one.header.broken else replace(one, look=self.looker.look(one.path)) for one in pictures
        ]


def folder_of(trainer: Trainer, text: str) -> Path:
    """The folder a text from the page names. Raises BadConfig if this host forbids it, BadDataset if there is none."""
    words = text.strip().strip("'\"")
    path = trainer.allowed(words, FIELD) if "\0" not in words else None
    if path is None or not os.path.isdir(path):  # unlike Path.is_dir, False for a name no file system takes
        raise BadDataset(f"there is no folder {words!r}; check the name, or drop the pictures here")
    return path


def _places(found: Survey) -> list[Path]:
    return list(dict.fromkeys([*(part.path for part in found.parts), found.folder]))


def _aside(found: Survey) -> int:
    return sum(removed_count(place) for place in _places(found))


def _said(words: str, name: str) -> str:
    return f'<div class="lk-message" role="status"><span>{words}</span> <b>{escape(name)}</b></div>'


def _refused(saved: Saved) -> str:
    rows = "".join(
        f'<li><span class="notranslate">{escape(name)}</span>: <span>{spoken(reason)}</span></li>'
        for name, reason in saved.refused[:20]
    )
    more = f"<li>+ {len(saved.refused) - 20}</li>" if len(saved.refused) > 20 else ""
    if not rows:
        return ""
    return f'<div class="lk-message lk-bad" role="alert"><span>Not saved:</span><ul>{rows}{more}</ul></div>'
