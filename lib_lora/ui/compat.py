"""The few things gradio 3, 4 and later name differently."""

from __future__ import annotations

import inspect
import json
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
    """Every file of javascript/ as one function, for pages that do not load that folder themselves; with languages."""
    parts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "javascript").glob("*.js"))]
    localise = (Path(__file__).parent / "localise.js").read_text(encoding="utf-8").strip()
    parts.append(f"{localise}({json.dumps(dictionaries())});")
    return "() => {\n" + "\n".join(f"{{\n{part}\n}}" for part in parts) + "\n}"


def dictionaries() -> dict[str, dict[str, str]]:
    """{language: {English: its words}} of localizations/, as the webui reads them."""
    files = sorted((ROOT / "localizations").glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def page_style() -> str:
    """style.css as text."""
    return (ROOT / "style.css").read_text(encoding="utf-8")


def copy_button(component: Any) -> dict[str, Any]:
    """The keyword that gives a textbox a copy button."""
    known = inspect.signature(component.__init__).parameters
    return {"show_copy_button": True} if "show_copy_button" in known else {"buttons": ["copy"]}


def component(name: str) -> Any:
    """gradio's component class of this name."""
    import gradio

    return getattr(gradio, name)


def popup(message: str) -> None:
    """A warning in the corner of the page whose button was pressed; nothing for a request from elsewhere."""
    import gradio

    gradio.Warning(message)
