"""The standalone page: Generate and Train as tabs of one gradio page, served without any other machine."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from lib_lora.ui import generate_tab, tab
from lib_lora.ui.compat import api_argument, js_argument, page_script, page_style
from lib_lora.ui.generate_tab import GenerateService
from lib_lora.ui.own_origin import OwnOriginOnly
from lib_lora.ui.this_machine import ThisMachineOnly
from lib_lora.ui.trainer import Trainer

TITLE = "LoRA kit"


def build(generator: GenerateService, trainer: Trainer) -> Any:
    """The page as `gr.Blocks`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    import gradio as gr

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    theme.set(body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500")
    looks = {"theme": theme, "css": page_style()}
    known = inspect.signature(gr.Blocks.__init__).parameters
    with gr.Blocks(title=TITLE, analytics_enabled=False, **(looks if "css" in known else {})) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Tabs():
            with gr.Tab("Generate"):
                generate_tab.add(generator)
            # gradio 6 builds a tab when it is first opened; what goes on is told outside of this one too
            of_tab = inspect.signature(gr.Tab.__init__).parameters
            whole = {"render_children": True} if "render_children" in of_tab else {}
            with gr.Tab("Train", elem_id="lorakit_train_tab", **whole):
                tab.add(trainer)
        page.load(None, [], [], queue=False, **api_argument(page.load, None), **js_argument(page.load, page_script()))
    page.lorakit_looks = {} if "css" in known else looks
    return page


def launch(page: Any, address: str, port: int, block: bool, then: Callable[[Any], None] | None = None) -> None:
    """Serve the page to this machine alone; until interrupted if `block`. `then` gets the FastAPI app when it runs."""
    from starlette.middleware import Middleware

    options: dict[str, Any] = {"server_name": address, "server_port": port, "share": False, "inbrowser": False}
    # gradio 3 lets pages of any site ask; its pages and gradio 4's load a script from elsewhere
    options["app_kwargs"] = {"middleware": [Middleware(ThisMachineOnly), Middleware(OwnOriginOnly)]}
    options |= page.lorakit_looks
    known = inspect.signature(page.launch).parameters
    if "show_api" in known:
        options["show_api"] = False
    app, *_ = page.launch(**options, prevent_thread_lock=True, quiet=not block)
    if then is not None:
        then(app)
    if block:
        page.block_thread()
