"""The captions of the Train page: a grid to edit them in, bulk edits, tags, what to absorb, models that write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lib_lora.errors import LoraError
from lib_lora.train.caption_edit import OPERATIONS, Edit
from lib_lora.train.looking import Looker
from lib_lora.ui import html, html_captions
from lib_lora.ui.caption_page import Captions, View, Wish, caught, said, saved_message
from lib_lora.ui.captioners import MODES, Captioner
from lib_lora.ui.compat import api_argument
from lib_lora.ui.html_pictures import shows
from lib_lora.ui.pictures import Turn
from lib_lora.ui.trainer import Trainer

STEP = "lorakit_captions"
KINDS = {label: kind for kind, label in OPERATIONS.items()}
WHY_ABSORB = (
    "A trait that every caption names is learned as that word, not as the trigger. Remove the lasting traits of the "
    "subject, and the trigger alone will draw them. Leave in what shall stay changeable."
)


def add(
    trainer: Trainer,
    folder: Any,
    looker: Looker | None = None,
    captioners: Callable[[], Sequence[Captioner]] = tuple,
) -> None:
    """The captions, into the current gradio context. `folder` is the textbox that names the folder of pictures.

    `captioners` gives what can write captions here; `looker` remembers pictures already looked at.
    """
    import gradio as gr

    page = Captions(trainer, looker or Looker(), captioners)
    with gr.Accordion("Captions", open=False, elem_id=STEP):
        parts = _Parts(folder)
        parts.grid_part()
        parts.bulk_part()
        parts.absorb_part()
        parts.captioner_part([one.name for one in captioners()])
    _wire(page, parts)


class _Parts:
    """The components, made in the order in which they stand on the page."""

    def __init__(self, folder: Any) -> None:
        self.folder = folder

    def grid_part(self) -> None:
        """Counts, tags, the grid, and what saves and takes back."""
        import gradio as gr

        self.told = gr.HTML(elem_id="lorakit_captions_told")
        self.tags = gr.HTML(elem_id="lorakit_caption_tags")
        with gr.Row(elem_classes=["lk-bar-row"]):
            self.status = gr.HTML(shows("", STEP, ""), elem_id="lorakit_caption_status")
            self.save = gr.Button("Save captions", variant="primary", elem_id="lorakit_caption_save")
            self.undo = gr.Button("Undo the last change", visible=False, elem_id="lorakit_caption_undo")
            self.files = gr.Button("Make files of the table's captions", visible=False, elem_id="lorakit_caption_files")
            self.again = gr.Button("Look again", elem_id=f"{STEP}_again")
            self.before = gr.Button("Previous", visible=False, elem_id="lorakit_captions_before")
            self.place = gr.HTML(elem_id="lorakit_captions_place")
            self.after = gr.Button("Next", visible=False, elem_id="lorakit_captions_after")
        self.grid = gr.HTML(elem_id="lorakit_caption_grid")
        self.page, self.turn = gr.State(0), gr.State(Turn())
        with gr.Column(elem_classes=["lk-hidden"]):
            self.edits = gr.Textbox("", show_label=False, elem_id="lorakit_caption_edits")
            self.tag = gr.Textbox("", show_label=False, elem_id="lorakit_tag_filter_value")
            self.filter = gr.Button("Filter", elem_id="lorakit_tag_filter")
            self.opener = gr.Button("Open", elem_id=f"{STEP}_open")
            self.sync = gr.Button("Follow", elem_id=f"{STEP}_sync")

    def bulk_part(self) -> None:
        """One operation on all captions, looked at before it is done."""
        import gradio as gr

        with gr.Accordion("Change all captions", open=False):
            with gr.Row():
                self.kind = gr.Dropdown(
                    list(KINDS), value=next(iter(KINDS)), label="What to do", elem_id="lorakit_bulk"
                )
                self.text = gr.Textbox(
                    "", label="Text or tags", placeholder="e.g. sks dog", elem_id="lorakit_bulk_text"
                )
                self.instead = gr.Textbox("", label="Instead of it (only to replace)", elem_id="lorakit_bulk_instead")
                self.number = gr.Number(
                    0, label="Tags kept (to sort or keep)", precision=0, elem_id="lorakit_bulk_number"
                )
            with gr.Row():
                self.look = gr.Button("Preview", elem_id="lorakit_bulk_preview")
                self.apply = gr.Button("Change all", elem_id="lorakit_bulk_apply")
            self.preview = gr.HTML(elem_id="lorakit_bulk_changes")

    def absorb_part(self) -> None:
        """Which tags the trigger should absorb."""
        import gradio as gr

        with gr.Accordion("What the trigger should absorb", open=False):
            gr.HTML(f'<div class="lk-view"><p class="lk-soft">{WHY_ABSORB}</p></div>')
            self.stays = gr.Textbox(
                "", label="Trigger and class, which stay", placeholder="e.g. sks, dog", elem_id="lorakit_absorb_stays"
            )
            self.proposal = gr.HTML(elem_id="lorakit_absorb_tags")
            with gr.Column(elem_classes=["lk-hidden"]):
                self.absorb_tags = gr.Textbox("", show_label=False, elem_id="lorakit_absorb_value")
                self.absorb = gr.Button("Remove", elem_id="lorakit_absorb")

    def captioner_part(self, names: Sequence[str]) -> None:
        """Models that write captions; not shown where there are none."""
        import gradio as gr

        with gr.Accordion("Let a model write captions", open=False, visible=bool(names)) as self.models:
            with gr.Row():
                self.captioner = gr.Dropdown(
                    list(names), value=names[0] if names else None, label="Model", elem_id="lorakit_captioner"
                )
                self.mode = gr.Radio(
                    list(MODES.values()), value=MODES["missing"], label="Which", elem_id="lorakit_mode"
                )
                self.begin = gr.Textbox(
                    "", label="Begin each with", placeholder="e.g. sks dog", elem_id="lorakit_caption_begin"
                )
            self.needs = gr.HTML(elem_id="lorakit_captioner_needs")
            with gr.Row():
                self.allow = gr.Checkbox(False, label="May download what it needs", elem_id="lorakit_may_download")
                self.write = gr.Button("Write captions", elem_id="lorakit_captioner_start")
                self.stop = gr.Button("Stop writing", elem_id="lorakit_captioner_stop")
            self.progress = gr.HTML(elem_id="lorakit_captioner_progress")
            with gr.Column(elem_classes=["lk-hidden"]):
                self.poll = gr.Button("Look", elem_id="lorakit_captioning")


def _wire(page: Captions, parts: _Parts) -> None:
    """Every event saves first what was typed, then acts, then shows the captions as they are."""
    do = _Deeds(page)
    outputs = [
        parts.status, parts.tags, parts.grid, parts.place, parts.page, parts.tag, parts.proposal,
        parts.undo, parts.files, parts.before, parts.after, parts.told,
    ]  # fmt: skip
    seen = [parts.folder, parts.page, parts.tag, parts.stays, parts.edits, parts.turn]

    def on(event: Any, act: Any, more: Sequence[Any] = (), also: Sequence[Any] = ()) -> None:
        quiet = {"queue": False, "show_progress": "hidden", **api_argument(event, None)}
        event(act, [*seen, *more], [*outputs, *also], **quiet)

    operation = [parts.kind, parts.text, parts.instead, parts.number]
    on(parts.opener.click, do.open, (), [parts.needs, parts.progress, parts.captioner])
    on(parts.folder.submit, do.show)
    for button in (parts.save, parts.again, parts.filter):
        on(button.click, do.show)
    for event in (parts.sync.click, parts.stays.submit, parts.stays.blur):
        on(event, do.follow)
    on(parts.before.click, do.previous)
    on(parts.after.click, do.next)
    on(parts.undo.click, do.undo)
    on(parts.files.click, do.to_files)
    on(parts.absorb.click, do.absorb, [parts.absorb_tags])
    on(parts.apply.click, do.apply, operation, [parts.preview])
    on(parts.look.click, do.preview, operation, [parts.preview])
    on(parts.write.click, do.write, [parts.captioner, parts.mode, parts.begin, parts.allow], [parts.progress])
    on(parts.stop.click, do.stop, (), [parts.progress])
    on(parts.poll.click, do.poll, (), [parts.progress])


class _Deeds:
    """The events. The first six inputs are the same for all: folder, page, tag, trigger and class, edits, turn."""

    def __init__(self, page: Captions) -> None:
        self.page = page

    def open(self, *seen: Any) -> list[Any]:
        """Another folder: its first page."""
        text, _, _, stays, edits, turn = seen
        import gradio as gr

        needs = {one.name: self._needs(one) for one in self.page.offered()}
        shown = self._show((text, 0, "", stays, edits, turn), quiet=True)
        now = html_captions.progress(self.page.run.progress())
        return [*shown, html_captions.options(needs), now, gr.update(choices=list(needs))]

    def show(self, *seen: Any) -> list[Any]:
        """The same page once more."""
        return self._show(seen)

    def follow(self, *seen: Any) -> list[Any]:
        """The same page as it is now, with the last message left standing; what is being typed is not saved by this."""
        return self._show((*seen[:4], "", seen[5]), quiet=True)

    def next(self, *seen: Any) -> list[Any]:
        """The page after this one."""
        return self._show((seen[0], seen[1] + 1, *seen[2:]))

    def previous(self, *seen: Any) -> list[Any]:
        """The page before this one."""
        return self._show((seen[0], seen[1] - 1, *seen[2:]))

    def undo(self, *seen: Any) -> list[Any]:
        """Take the last operation back."""
        return self._show(seen, lambda: self.page.take_back(seen[0]))

    def to_files(self, *seen: Any) -> list[Any]:
        """Files for the captions of a table."""
        return self._show(seen, lambda: said("Files made:", self.page.to_files(seen[0])))

    def absorb(self, *given: Any) -> list[Any]:
        """Remove tags that the trigger should absorb."""
        *seen, tags = given
        return self._show(seen, lambda: said("Captions changed:", self.page.remove_tags(seen[0], tags)))

    def apply(self, *given: Any) -> list[Any]:
        """A bulk edit."""
        seen, edit = given[:6], _edit(*given[6:])
        what = f"{given[6]} {edit.text} {edit.instead}".strip()[:120]
        shown = self._show(seen, lambda: said("Captions changed:", self.page.apply(seen[0], edit, what)))
        return [*shown, ""]

    def preview(self, *given: Any) -> list[Any]:
        """What a bulk edit would change."""
        seen, edit = given[:6], _edit(*given[6:])
        shown = self._show(seen)
        return [*shown, caught(lambda: html_captions.preview(self.page.bulk(seen[0], edit)))]

    def write(self, *given: Any) -> list[Any]:
        """Let a model write captions."""
        seen, (name, mode, begin, allow) = given[:6], given[6:]
        shown = self._show(seen)
        try:
            self.page.describe(seen[0], str(name), str(mode), (str(begin), bool(allow)))
        except LoraError as error:
            return [*shown, html.message(str(error), True)]
        return [*shown, html_captions.progress(self.page.run.progress())]

    def stop(self, *seen: Any) -> list[Any]:
        """End the writing after the picture in hand."""
        self.page.run.stop()
        return self.poll(*seen)

    def poll(self, *seen: Any) -> list[Any]:
        """How far the writing is, and the captions so far."""
        now = self.page.run.progress()
        return [*self.follow(*seen), html_captions.progress(now)]

    def _show(self, seen: Sequence[Any], act: Callable[[], str] | None = None, quiet: bool = False) -> list[Any]:
        """Save, act, show; what happened is told unless `quiet` and nothing did."""
        import gradio as gr

        text, page, tag, stays, edits, turn = seen
        ticket = turn.take()
        told, saved = "", []
        try:
            done = self.page.save(edits or "")
            told, saved = saved_message(done), done.saved
            told += act() if act is not None else ""
        except LoraError as error:
            told += html.message(str(error), True)
        try:
            view = self.page.view(Wish(text, int(page), tag or "", stays or ""), saved)
        except LoraError as error:
            view = View(status=f'<p class="lk-note">{html_captions.NO_FOLDER}</p>')  # the pictures' part says why
            told = told or ("" if quiet else html.message(str(error), True))
        if turn.number != ticket and not saved:  # the page asks for something newer already
            return [gr.update() for _ in range(12)]
        return [
            shows(text, STEP, view.status, view.state), view.tags, view.grid,
            view.place, view.page, view.tag, view.absorb,
            gr.update(visible=bool(view.undo)), gr.update(visible=view.in_tables > 0),
            *(gr.update(visible=view.pages > 1, interactive=on) for on in (view.page > 0, view.page + 1 < view.pages)),
            told if told or not quiet else gr.update(),
        ]  # fmt: skip

    def _needs(self, one: Captioner) -> str:
        """Why a captioner cannot be used, or what it fetches."""
        fetched = one.downloads()
        return one.available() or (f"downloads {fetched} at its first use" if fetched else "")


def _edit(kind: Any, text: Any, instead: Any, number: Any) -> Edit:
    """The operation that the widgets describe."""
    count = int(number) if isinstance(number, (int, float)) and number == number and abs(number) < 1e6 else 0
    return Edit(KINDS.get(str(kind), str(kind)), str(text or ""), str(instead or ""), count)
