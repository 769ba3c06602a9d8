"""The Generate page of the standalone program: a prompt with tags in, pictures and a report of the networks out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lib_lora.errors import LoraError
from lib_lora.ui import html
from lib_lora.ui.compat import api_argument, js_argument

ADD_TAG = "(prompt, name) => [(prompt.trim() + ` <lora:${name}:1>`).trim()]"


@dataclass(frozen=True)
class Picture:
    """What to draw, as the page gives it. `size` in pixels, width and height alike."""

    prompt: str
    negative: str
    seed: int
    steps: int
    cfg: float
    size: int
    batch: int


@dataclass(frozen=True)
class Drawn:
    """Pictures (PIL), and lines about the networks that were applied; `complete` if every layer found its place."""

    pictures: Sequence[Any]
    report: str
    complete: bool


class GenerateService(Protocol):
    """Draws pictures and knows the networks."""

    def generate(self, picture: Picture) -> Drawn:
        """The pictures. Raises LoraError for a tag or value that cannot be used."""

    def networks(self) -> Sequence[str]:
        """The names that can be written in a tag."""

    def usual_size(self) -> int:
        """The side in pixels that the loaded model draws best."""

    def usual_cfg(self) -> float:
        """The guidance that the loaded model draws best with."""


def add(service: GenerateService) -> None:
    """The page, into the current gradio context."""
    import gradio as gr

    page = GeneratePage(service)
    with gr.Column(elem_classes=["lorakit"]), gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=340):
            prompt = gr.Textbox(
                label="Prompt", lines=3, placeholder="a photo of sks dog <lora:my-network:1>", elem_id="lorakit_prompt"
            )
            negative = gr.Textbox(label="Negative prompt", lines=1)
            names = gr.Dropdown(
                list(service.networks()), label="Networks", info="choose one to add its tag to the prompt", value=None
            )
            numbers = _numbers(service)
            go = gr.Button("Generate", variant="primary", elem_id="lorakit_generate")
        with gr.Column(scale=2, min_width=340):
            gallery = gr.Gallery(
                label="Pictures", show_label=False, columns=2, height=420, object_fit="contain", elem_id="lorakit_out"
            )
            report = gr.HTML(elem_id="lorakit_report")
    go.click(
        page.generate,
        [prompt, negative, *numbers],
        [gallery, report],
        queue=False,
        **api_argument(go.click, "lorakit_generate"),
    )
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", **api_argument(go.click, None)}
    names.focus(page.names, [], [names], **quiet)
    names.select(None, [prompt, names], [prompt], **quiet, **js_argument(names.select, ADD_TAG))


def _numbers(service: GenerateService) -> list[Any]:
    """Seed, steps, guidance, size and count: the order that `GeneratePage.generate` reads."""
    import gradio as gr

    size = service.usual_size()
    with gr.Row():
        seed = gr.Number(value=0, precision=0, label="Seed", min_width=120)
        count = gr.Slider(1, 8, value=2, step=1, label="Pictures", min_width=200)
    with gr.Row():
        steps = gr.Slider(1, 100, value=20, step=1, label="Steps", min_width=200)
        cfg = gr.Slider(1, 20, value=service.usual_cfg(), step=0.5, label="Guidance", min_width=200)
        side = gr.Slider(64, 1024, value=size, step=64, label="Size", min_width=200)
    return [seed, steps, cfg, side, count]


class GeneratePage:
    """What the page's events do, on plain values."""

    def __init__(self, service: GenerateService) -> None:
        self.service = service

    def generate(self, prompt: str, negative: str, *numbers: float) -> tuple[list[Any], str]:
        """The pictures and the report as HTML; numbers are seed, steps, guidance, size and count."""
        try:
            seed, steps, cfg, size, batch = numbers
            picture = Picture(
                prompt=prompt or "",
                negative=negative or "",
                seed=int(seed or 0),
                steps=int(steps),
                cfg=float(cfg),
                size=int(size),
                batch=int(batch),
            )
        except (TypeError, ValueError, OverflowError):
            return [], html.message("a field of numbers is empty or no number; fill it in", bad=True)
        try:
            drawn = self.service.generate(picture)
        except LoraError as error:
            return [], html.message(str(error), bad=True)
        return list(drawn.pictures), html.message(drawn.report, bad=not drawn.complete)

    def names(self) -> Any:
        """The networks there are now."""
        import gradio as gr

        return gr.update(choices=list(self.service.networks()))
