"""The first step of the Train page: a folder of pictures, or pictures dropped here; what they are, what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lib_lora.errors import LoraError
from lib_lora.train.looking import Looker
from lib_lora.ui import html
from lib_lora.ui.compat import api_argument
from lib_lora.ui.picture_page import INVITATION, STEP, Pictures
from lib_lora.ui.trainer import Trainer


@dataclass(frozen=True)
class PicturesStep:
    """The step as the others need it: the folder's textbox, and what remembers pictures already looked at."""

    folder: Any
    looker: Looker


class Turn:
    """Counts the questions of one page, so that a late answer does not take the place of a newer one's."""

    def __init__(self) -> None:
        self.number = 0

    def take(self) -> int:
        """A new number."""
        self.number += 1
        return self.number


def add(trainer: Trainer) -> PicturesStep:
    """The step, into the current gradio context."""
    import gradio as gr

    looker = Looker()
    page = Pictures(trainer, looker)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            folder = gr.Textbox(
                label="Folder of pictures",
                info="5 to 30 pictures of one subject, more of a style",
                placeholder="/home/me/pictures/rex",
                elem_id="lorakit_folder",
            )
            told = gr.HTML(elem_id="lorakit_pictures_told")
            summary = gr.HTML(INVITATION, elem_id="lorakit_pictures")
        with gr.Column(scale=2, min_width=300):
            drop = gr.File(
                label="Or drop pictures here, with their captions (.txt)",
                file_count="multiple",
                file_types=["image", ".txt"],
                elem_id="lorakit_drop",
            )
    with gr.Row(visible=False, elem_classes=["lk-bar-row"]) as bar:
        only = gr.Checkbox(False, label="Only those with a problem", elem_id="lorakit_only_bad")
        again = gr.Button("Look again", elem_id=f"{STEP}_again")
        back = gr.Button("Bring the last one back", visible=False, elem_id="lorakit_put_back")
        before = gr.Button("Previous", elem_id="lorakit_pictures_before")
        place = gr.HTML(elem_id="lorakit_pictures_place")
        after = gr.Button("Next", elem_id="lorakit_pictures_after")
    grid = gr.HTML(elem_id="lorakit_pictures_grid")
    with gr.Column(elem_classes=["lk-hidden"]):
        name = gr.Textbox("", show_label=False, elem_id="lorakit_remove_value")
        away = gr.Button("Remove", elem_id="lorakit_remove")
        more = gr.Button("Look on", elem_id="lorakit_pictures_more")
        opener = gr.Button("Open", elem_id=f"{STEP}_open")
        sync = gr.Button("Follow", elem_id=f"{STEP}_sync")
    number_, turn = gr.State(0), gr.State(Turn())
    wires = _Wires(page, [folder, only, number_, turn], [summary, grid, place, number_, bar, back, before, after, told])
    # not folder.change: some versions of gradio drop changes while an answer is under way, others send each letter
    wires.connect(folder.submit, wires.same)
    wires.connect(opener.click, wires.first)
    wires.connect(only.change, wires.first)
    for button, act in (
        (again, wires.same),
        (sync, wires.same),
        (more, wires.go_on),
        (before, wires.previous),
        (after, wires.next),
    ):
        wires.connect(button.click, act)
    wires.connect(away.click, wires.remove, [name])
    wires.connect(back.click, wires.put_back)
    wires.upload(drop)
    return PicturesStep(folder, looker)


class _Wires:
    """The events between page and gradio."""

    def __init__(self, page: Pictures, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        self.page = page
        self.inputs, self.outputs = list(inputs), list(outputs)

    def connect(self, event: Any, act: Any, more: Sequence[Any] = ()) -> Any:
        """An event of a component -> one of the methods below."""
        quiet = {"queue": False, "show_progress": "hidden", **api_argument(event, None)}
        return event(act, [*self.inputs, *more], self.outputs, **quiet)

    def upload(self, drop: Any) -> None:
        """Dropped files -> saved, the field emptied, the folder shown."""
        import gradio as gr

        def save(given: Any, text: str) -> list[Any]:
            try:
                path, message = self.page.upload(given, text)
            except LoraError as error:
                path, message = text, html.message(str(error), True)
            return [path, message, gr.update(value=None)]

        folder, told = self.inputs[0], self.outputs[-1]
        event = drop.upload
        quiet: dict[str, Any] = {"queue": False, **api_argument(event, None)}
        done = event(save, [drop, folder], [folder, told, drop], **quiet)
        self.connect(done.then, self.same)

    def first(self, text: str, only: bool, page: int, turn: Turn) -> list[Any]:
        """Another folder or choice: its first page; only what was just uploaded keeps its message."""
        return self._show(text, 0, only, turn, keep=self.page.is_upload(text))

    def same(self, text: str, only: bool, page: int, turn: Turn) -> list[Any]:
        """The same page once more."""
        return self._show(text, page, only, turn, keep=True)

    go_on = same

    def next(self, text: str, only: bool, page: int, turn: Turn) -> list[Any]:
        """The page after this one."""
        return self._show(text, page + 1, only, turn)

    def previous(self, text: str, only: bool, page: int, turn: Turn) -> list[Any]:
        """The page before this one."""
        return self._show(text, page - 1, only, turn)

    def remove(self, text: str, only: bool, page: int, turn: Turn, name: str) -> list[Any]:
        """Put one picture aside and show the rest."""
        return self._done(lambda: self.page.remove(text, name), text, page, only, turn)

    def put_back(self, text: str, only: bool, page: int, turn: Turn) -> list[Any]:
        """Bring one back and show it."""
        return self._done(lambda: self.page.put_back(text), text, page, only, turn)

    def _done(self, act: Callable[[], str], text: str, page: int, only: bool, turn: Turn) -> list[Any]:
        try:
            message = act()
        except LoraError as error:
            message = html.message(str(error), True)
        return [*self._show(text, page, only, turn)[:-1], message]

    def _show(self, text: str, page: int, only: bool, turn: Turn, keep: bool = False) -> list[Any]:
        import gradio as gr

        ticket = turn.take()
        view = self.page.view(text, page, only)
        if turn.number != ticket:  # the folder's name has been typed on meanwhile
            return [gr.update() for _ in self.outputs]
        return [
            view.summary,
            view.grid,
            view.place,
            view.page,
            gr.update(visible=view.filled or view.aside > 0),
            gr.update(visible=view.aside > 0),
            gr.update(visible=view.pages > 1, interactive=view.page > 0),
            gr.update(visible=view.pages > 1, interactive=view.page + 1 < view.pages),
            gr.update() if keep else "",
        ]
