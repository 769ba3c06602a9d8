"""The parts of the page that show training, over a trainer that trains nothing, as a page of their own."""

from __future__ import annotations

import inspect
import socket
from pathlib import Path
from typing import Any

from PIL import Image

from lib_lora.ui import after, generate_tab, page, running, runs
from lib_lora.ui.compat import api_argument, js_argument, page_script, page_style
from tests.ui.fake_trainer import FakeTrainer


class Form:
    """Two fields of a form, to be filled."""

    def __init__(self) -> None:
        import gradio as gr

        self.inputs = [
            gr.Textbox(label="Name", elem_id="lorakit_form", interactive=True),
            gr.Textbox(label="Trigger", interactive=True),
        ]

    def fill(self, settings: Any) -> list[Any]:
        import gradio as gr

        return [gr.update(value=settings[key]) for key in ("output.name", "data.trigger")]


class Generator:
    """Draws red squares."""

    def generate(self, picture: generate_tab.Picture) -> generate_tab.Drawn:
        return generate_tab.Drawn([Image.new("RGB", (64, 64), "red")] * picture.batch, f"drew {picture.prompt}", True)

    def networks(self) -> list[str]:
        return ["rex"]

    def usual_size(self) -> int:
        return 512

    def usual_cfg(self) -> float:
        return 7.0


class Stage:
    """The page on a port of its own. `close` and `serve` again are a server that ends and comes back."""

    def __init__(self, root: Path) -> None:
        self.trainer = FakeTrainer(root)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.page: Any = None
        self.serve()

    def serve(self) -> None:
        self.page = self._build()
        page.launch(self.page, "127.0.0.1", self.port, block=False)

    def close(self) -> None:
        self.page.close()

    def _build(self) -> Any:
        import gradio as gr

        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        looks = {"css": page_style(), "theme": theme}
        known = inspect.signature(gr.Blocks.__init__).parameters
        with gr.Blocks(title="LoRA kit", analytics_enabled=False, **(looks if "css" in known else {})) as built:
            with gr.Tabs():
                with gr.Tab("Generate"):
                    generate_tab.add(Generator())
                with gr.Tab("Train"):
                    with gr.Column(elem_classes=["lorakit"]):
                        form = Form()
                        gr.Button("Begin", elem_id="lorakit_start")
                    part = running.add(self.trainer)
                    after.add(self.trainer, part)
                    runs.add(self.trainer, form)
            built.load(
                None, [], [], queue=False, **api_argument(built.load, None), **js_argument(built.load, page_script())
            )
        built.lorakit_looks = {} if "css" in known else looks
        return built
