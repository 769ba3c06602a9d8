"""The webui's editor of what the user writes about a network, with the fields that a LoRA needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FIELDS = ("activation text", "preferred weight", "negative text", "notes")


def editor_class(base: type, versions: Sequence[str]) -> type:
    """A class over the webui's `UserMetadataEditor`. It writes the same .json beside the file as the built-in's."""
    import gradio as gr

    class LoraEditor(base):  # type: ignore[misc, valid-type]
        """Description, version of the base model, activation text, preferred weight, negative text, notes."""

        def create_extra_default_items_in_left_column(self) -> None:
            self.version = gr.Dropdown(
                list(versions), value=versions[-1], label="Stable Diffusion version", interactive=True
            )

        def create_editor(self) -> None:
            self.create_default_editor_elems()
            activation = gr.Textbox(label="Activation text", info="Is added to the prompt with the tag")
            weight = gr.Slider(
                label="Preferred weight", info="0: the setting's", minimum=0.0, maximum=2.0, step=0.01, value=0.0
            )
            negative = gr.Textbox(label="Negative prompt", info="Is added to the negative prompt with the tag")
            self.edit_notes = gr.TextArea(label="Notes", lines=4)
            self.create_default_buttons()
            entered = [self.version, activation, weight, negative, self.edit_notes]
            shown = [self.edit_name, self.edit_description, self.html_filedata, self.html_preview, *entered]
            click = self.button_edit.click(fn=self.values, inputs=[self.edit_name_input], outputs=shown)
            click.then(fn=lambda: gr.update(visible=True), inputs=[], outputs=[self.box])
            self.setup_save_handler(self.button_save, self.save, [self.edit_description, *entered])

        def values(self, name: str) -> list[Any]:
            """What the fields show for a card."""
            written = self.get_user_metadata(name)
            basic = list(self.put_values_into_components(name))[:4]  # name, description, facts, preview
            version = self.page.items.get(name, {}).get("sd_version")
            activation, weight, negative, notes = (written.get(field) for field in FIELDS)
            chosen = version if version in versions else versions[-1]
            return [*basic, chosen, activation or "", float(weight or 0.0), negative or "", notes or ""]

        def save(self, name: str, description: str, version: str, *values: Any) -> None:
            """Write the fields into the .json beside the file; what else is in there stays."""
            written = self.get_user_metadata(name)
            written.update({"description": description, "sd version": version, **dict(zip(FIELDS, values))})
            self.write_user_metadata(name, written)

    return LoraEditor
