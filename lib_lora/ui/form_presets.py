"""Presets and wizards: they fill the form. Those of the user are saved by name, replaced and deleted when asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lib_lora.errors import LoraError
from lib_lora.train.presets import PRESETS
from lib_lora.train.wizard import STYLE, SUBJECT, low_memory
from lib_lora.ui import html
from lib_lora.ui.compat import api_argument
from lib_lora.ui.form_page import FormPage, Values, told

WIZARDS: Mapping[str, tuple[str, str | None]] = {  # label: the kind it begins, and the class it proposes
    "A person": (SUBJECT, "person"),
    "An object": (SUBJECT, None),
    "A style": (STYLE, ""),
}
SAVE, DELETE = "save", "delete"


def add(page: FormPage, inputs: list[Any]) -> list[Any]:
    """The part, into the current gradio context; the components that a look at the form updates: choices, reasons."""
    import gradio as gr

    with gr.Accordion("Presets and wizards", open=False, elem_id="lorakit_presets"):
        with gr.Row(equal_height=False):
            chosen = gr.Dropdown(
                list(PRESETS), value=next(iter(PRESETS)), label="Preset", info="sets everything under Advanced",
                allow_custom_value=True, elem_id="lorakit_preset",
            )  # fmt: skip
            name = gr.Textbox(label="Save the form as", placeholder="name", elem_id="lorakit_preset_name")
        with gr.Row():
            use = gr.Button("Use preset", size="sm", elem_id="lorakit_preset_use")
            delete = gr.Button("Delete preset", size="sm", elem_id="lorakit_preset_delete")
            save = gr.Button("Save preset", size="sm", elem_id="lorakit_preset_save")
        with gr.Row():
            wizards = [gr.Button(label, size="sm", elem_id=f"lorakit_wizard_{at}") for at, label in enumerate(WIZARDS)]
            less = gr.Button("Low memory", size="sm", elem_id="lorakit_wizard_memory")
            defaults = gr.Button("Defaults", size="sm", elem_id="lorakit_defaults")
        message = gr.HTML("", elem_id="lorakit_preset_message")
        with gr.Row(visible=False, elem_id="lorakit_preset_ask") as ask:
            yes = gr.Button("Yes", variant="stop", size="sm", elem_id="lorakit_preset_yes")
            no = gr.Button("No", size="sm", elem_id="lorakit_preset_no")
        refused = gr.HTML("", elem_id="lorakit_preset_refused")
        pending = gr.State("")
    events = PresetEvents(page)
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", **api_argument(use.click, None)}
    filled = [*inputs, message]
    use.click(events.use, [chosen, *inputs], filled, **quiet)
    for button, label in zip(wizards, WIZARDS):
        button.click(events.wizard(label), inputs, filled, **quiet)
    less.click(events.low_memory, inputs, filled, **quiet)
    defaults.click(events.defaults, inputs, filled, **quiet)
    after = [message, ask, pending, chosen]
    save.click(events.save, [name, *inputs], after, **quiet)
    delete.click(events.delete, [chosen], after, **quiet)
    yes.click(events.yes, [pending, *inputs], after, **quiet)
    no.click(events.no, [], after, **quiet)
    return [chosen, refused]


class PresetEvents:
    """What the buttons do, on plain values."""

    def __init__(self, page: FormPage) -> None:
        self.page = page

    def use(self, name: str, *values: Any) -> list[Any]:
        """Fill the form with a preset."""
        from lib_lora.ui.form import updates

        try:
            found, text = self.page.preset_chosen(str(name or ""), values)
        except LoraError as error:
            return [*unchanged(values), told(error)]
        return [*updates(found, values), html.message(text)]

    def wizard(self, label: str) -> Callable[..., list[Any]]:
        """The handler of a wizard's button."""
        kind, word = WIZARDS[label]

        def handler(*values: Any) -> list[Any]:
            class_word = None if word is None or (word and str(values[4] or "").strip()) else word
            found, text = guarded(lambda given: self.page.anew(kind, given, class_word), values)
            return [*found, text or html.message("The form is set.")]

        return handler

    def low_memory(self, *values: Any) -> list[Any]:
        """Whatever saves memory, into the form; as many pictures are seen as before."""

        def change(given: Sequence[Any]) -> Values:
            job = self.page.trainer.job(self.page.read(given))
            return self.page.changed_by(low_memory(job, self.page.machine()), given)

        found, text = guarded(change, values)
        return [*found, text or html.message("The form is set for little memory.")]

    def defaults(self, *values: Any) -> list[Any]:
        """Everything as at the beginning, but the folder, the trigger and the name."""
        found, text = guarded(lambda given: self.page.anew(SUBJECT, given, ""), values)
        return [*found, text or html.message("The form is as at the beginning.")]

    def save(self, name: str, *values: Any) -> list[Any]:
        """Save the form under a name, or ask whether a preset of that name shall be replaced."""
        name = str(name or "").strip()
        taken = next((own for own in self.page.store.names() if own.casefold() == name.casefold()), "")
        if taken:
            return self._ask(f"There is a preset {taken!r} already. Replace it?", SAVE, taken)
        return self._save(name, values, replace=False)

    def delete(self, name: str) -> list[Any]:
        """Ask whether a preset shall be deleted."""
        name = str(name or "")
        if name in PRESETS:
            return self._told(f"Preset {name!r} comes with the program and stays.", bad=True)
        if name not in self.page.store.names():
            return self._told(f"There is no preset {name[:60]!r} of yours.", bad=True)
        return self._ask(f"Delete preset {name!r}?", DELETE, name)

    def yes(self, pending: str, *values: Any) -> list[Any]:
        """Do what was asked."""
        what, _, name = str(pending or "").partition(":")
        if what == SAVE:
            return self._save(name, values, replace=True)
        if what != DELETE:
            return self._told("")
        try:
            self.page.store.delete(name)
        except LoraError as error:
            return self._told(str(error), bad=True)
        return self._told(f"Preset {name!r} is deleted.", choose=next(iter(PRESETS)))

    def no(self) -> list[Any]:
        """Leave everything as it is."""
        return self._told("")

    def _save(self, name: str, values: Sequence[Any], replace: bool) -> list[Any]:
        try:
            saved = self.page.store.save(name, self.page.reading(values).own(), replace)
        except LoraError as error:
            return [told(error), *self._told("")[1:]]
        return self._told(f"Preset {saved!r} is saved.", choose=saved)

    def _ask(self, question: str, what: str, name: str) -> list[Any]:
        import gradio as gr

        return [html.message(question), gr.update(visible=True), f"{what}:{name}", gr.update()]

    def _told(self, text: str, bad: bool = False, choose: str = "") -> list[Any]:
        import gradio as gr

        chosen = gr.update()
        if choose:
            chosen = gr.update(choices=[*PRESETS, *self.page.store.names()], value=choose)
        return [html.message(text, bad), gr.update(visible=False), "", chosen]


def guarded(change: Callable[[Sequence[Any]], Values], values: Sequence[Any]) -> tuple[list[Any], str]:
    """The updates of a change of the form and no message; or none, and what was wrong as HTML."""
    from lib_lora.ui.form import updates

    try:
        return updates(change(values), values), ""
    except LoraError as error:
        return unchanged(values), told(error)


def unchanged(values: Sequence[Any]) -> list[Any]:
    """No update for any field."""
    import gradio as gr

    return [gr.update() for _ in values]
