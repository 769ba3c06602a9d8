"""Parts of the page that stay as the server has them: HTML that javascript/lorakit.js asks for and patches in.

A panel is one hidden button. Pressed, it sends what the browser shows already, and perhaps something to do; what comes
back are the regions that differ. The server keeps nothing for a browser: a reload, a second tab and a restarted server
see the same. A region's HTML arrives as hidden text (gradio 6 would not replace what is in a <template>) and is
patched into what is visible, so that open details, focus, selection and scrolling survive.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

from lib_lora.errors import BadConfig, LoraError
from lib_lora.ui import html as told
from lib_lora.ui.compat import api_argument, js_argument


@dataclass(frozen=True)
class Request:
    """What a browser asks: the marks of what it shows, what it looks at (`view`), what to do, and a running number."""

    seen: Mapping[str, str] = field(default_factory=dict)
    view: Mapping[str, Any] = field(default_factory=dict)
    do: Mapping[str, Any] = field(default_factory=dict)
    beat: int = 0

    @classmethod
    def read(cls, text: Any) -> Request:
        """The request in a text that comes from a browser; whatever cannot be read counts as not said."""
        try:
            found = json.loads(text)
        except (ValueError, TypeError, RecursionError):
            return cls()
        if not isinstance(found, dict):
            return cls()
        seen, view, do = (_table(found.get(name)) for name in ("seen", "view", "do"))
        beat = found.get("beat")
        return cls(seen, view, do, beat if type(beat) is int else 0)


Do = Mapping[str, Any]
Action = Callable[[Do], str]
Answer = Callable[[Request], Mapping[str, str]]


class Panel:
    """Regions of the page, one below the other, with one hidden button.

    `regions` are their names and their HTML until the first answer.
    """

    def __init__(self, name: str, regions: Mapping[str, str], button: str = "") -> None:
        self.name, self.regions = name, dict(regions)
        self.button_id = button or f"lorakit_{name}_refresh"

    def add(self, answer: Answer) -> Any:
        """The panel, into the current gradio context; its button. `answer` gives the HTML of regions by name.

        Regions that it leaves out stay as they are. Region `x` is the element `#lorakit_x`.
        """
        import gradio as gr

        places = (f'<div class="lk-view" id="lorakit_{name}" data-lk-view="{name}"></div>' for name in self.regions)
        gr.HTML("".join(places))
        with gr.Column(elem_classes=["lk-hidden"]):
            sources = [gr.HTML(self.source(name, html)) for name, html in self.regions.items()]
            beat = gr.HTML(self._beat(0))
            text = gr.Textbox("", show_label=False, elem_id=f"lorakit_{self.name}_text")
            button = gr.Button("Refresh", elem_id=self.button_id)
        button.click(
            lambda said: self.respond(said, answer),
            [text],
            [*sources, beat],
            queue=False,
            show_progress="hidden",
            **api_argument(button.click, None),
            **asking(button.click, self.name),
        )
        return button

    def respond(self, said: Any, answer: Answer) -> list[Any]:
        """One update for each region, empty where the browser has it already, and the request's number."""
        import gradio as gr

        request = Request.read(said)
        parts = answer(request)
        sent = []
        for name in self.regions:
            html = parts.get(name)
            if html is None or mark_of(html) == request.seen.get(name):
                sent.append(gr.update())
            else:
                sent.append(gr.update(value=self.source(name, html)))
        return [*sent, gr.update(value=self._beat(request.beat))]

    def source(self, name: str, html: str) -> str:
        """A region's HTML as it travels: as text, with what it is and its mark."""
        facts = f'data-lk-region="{name}" data-lk-panel="{self.name}" data-lk-mark="{mark_of(html)}"'
        return f'<div hidden class="notranslate" {facts}>{escape(html, quote=False)}</div>'

    def _beat(self, number: int) -> str:
        return f'<div hidden data-lk-beat="{number}" data-lk-panel="{self.name}"></div>'


def asking(event: Any, panel: str) -> dict[str, str]:
    """The keyword with which an event sends a panel's request (JSON text, one input) to the server."""
    return js_argument(event, f"() => [window.lorakit ? window.lorakit.request('{panel}') : '']")


def mark_of(html: str) -> str:
    """What tells one HTML from another."""
    return hashlib.sha256(html.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def act(do: Do, actions: Mapping[str, Action]) -> str:
    """Do what a button asks for by the name `do`; what came of it as HTML, which is never the same twice.

    The page takes a message back after a while (javascript/lorakit_notices.js); gradio would not send the same again.
    """
    action = actions.get(text_of(do, "do"))
    try:
        if action is None:
            raise BadConfig("the page asked for something unknown; load it again")
        html = told.message(action(do))
    except LoraError as error:
        html = told.message(str(error), bad=True)
    return f'<div data-lk-at="{time.time_ns()}">{html}</div>' if html else ""


def text_of(do: Do, name: str) -> str:
    """A text that the browser sent, or ""."""
    value = do.get(name)
    return value if isinstance(value, str) else ""
