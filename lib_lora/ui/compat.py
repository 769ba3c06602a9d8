"""The few things gradio 3, 4 and later name differently."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def js_argument(event: Any, code: str) -> dict[str, str]:
    """The keyword with which this event method (e.g. `button.click`) takes javascript."""
    return {"js" if "js" in inspect.signature(event).parameters else "_js": code}


def api_argument(event: Any, name: str | None) -> dict[str, Any]:
    """`api_name` for an event; without a name it is kept out of the API."""
    if name:
        return {"api_name": name}
    if "api_visibility" in inspect.signature(event).parameters:
        return {"api_visibility": "private"}
    return {"api_name": False}


def page_script() -> str:
    """javascript/lorakit.js as one function, for pages that do not load that folder themselves."""
    return "() => {\n" + (ROOT / "javascript" / "lorakit.js").read_text(encoding="utf-8") + "\n}"


def page_style() -> str:
    """style.css as text."""
    return (ROOT / "style.css").read_text(encoding="utf-8")


def component(name: str) -> Any:
    """gradio's component class of this name."""
    import gradio

    return getattr(gradio, name)


def popup(message: str) -> None:
    """A warning in the corner of the page whose button was pressed; nothing for a request from elsewhere."""
    import gradio

    gradio.Warning(message)
