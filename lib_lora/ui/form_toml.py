"""The form as a job file, with the command for a server; and a job file read into the form."""

from __future__ import annotations

from typing import Any

from lib_lora.errors import LoraError
from lib_lora.train.export import command_for, file_name, job_text, settings_of_text
from lib_lora.train.preset_store import PERSONAL
from lib_lora.ui import html
from lib_lora.ui.compat import api_argument, copy_button
from lib_lora.ui.form_page import FormPage, told

FILE_BUTTONS = (
    '<div class="lkf-files"><button type="button" data-lk-save="lorakit_toml"><span>Save as a file</span></button>'
    '<label class="lkf-file"><span>Open a file</span><input type="file" accept=".toml,text/plain" '
    'data-lk-load="lorakit_toml"></label></div>'
)


def add(page: FormPage, inputs: list[Any]) -> None:
    """The part, into the current gradio context."""
    import gradio as gr

    with gr.Accordion("Job file and server", open=False, elem_id="lorakit_job_file"):
        text = gr.Textbox(
            label="Job (TOML)", lines=8, max_lines=24, elem_id="lorakit_toml",
            info="show this form as a job, or paste one here and read it", **copy_button(gr.Textbox),
        )  # fmt: skip
        with gr.Row():
            show = gr.Button("Show this form", size="sm", elem_id="lorakit_toml_show")
            read = gr.Button("Read into the form", size="sm", elem_id="lorakit_toml_read")
            gr.HTML(FILE_BUTTONS)
        commands = gr.Textbox(
            label="On a server", lines=2, interactive=False, elem_id="lorakit_command", **copy_button(gr.Textbox),
            info="in this program's folder; the second line is for several GPUs. Fill in the checkpoint's name",
        )  # fmt: skip
        message = gr.HTML("", elem_id="lorakit_toml_message")
    events = TomlEvents(page)
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", **api_argument(show.click, None)}
    show.click(events.show, inputs, [text, commands, message], **quiet)
    read.click(events.read, [text, *inputs], [*inputs, message], **quiet)


class TomlEvents:
    """What the buttons do, on plain values."""

    def __init__(self, page: FormPage) -> None:
        self.page = page

    def show(self, *values: Any) -> list[Any]:
        """The form as TOML, the commands, and a message."""
        import gradio as gr

        try:
            job = self.page.trainer.job(self.page.read(values))
        except LoraError as error:
            return [gr.update(), gr.update(), told(error)]
        name = file_name(job)
        lines = (command_for(job, name), command_for(job, name, processes=2))
        return [job_text(job), "\n".join(lines), ""]

    def read(self, text: str, *values: Any) -> list[Any]:
        """The form with everything a job says; folders it leaves out stay this machine's."""
        from lib_lora.ui.form import updates
        from lib_lora.ui.form_presets import unchanged

        try:
            given = settings_of_text(str(text or ""))
            found = updates(self.page.fill(self._complete(given)))
        except LoraError as error:
            return [*unchanged(values), told(error)]
        return [*found, html.message(f"The job is in the form: {len(given)} settings.")]

    def _complete(self, given: dict[str, Any]) -> dict[str, Any]:
        """What a job leaves out is what a job means by that; folders are this machine's."""
        from lib_lora.train.config import fields

        usual = {item.key: item.default for item in fields() if item.key not in PERSONAL}
        return {**usual, **given}
