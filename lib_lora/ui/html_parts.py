"""Small pieces of our own HTML: buttons that do something, figures, sizes, times. Everything from a user is escaped."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from html import escape
from typing import Any

MB = 1024**2
GB = 1024**3


def button(label: str, do: Mapping[str, Any] | None = None, **more: Any) -> str:
    """A button that asks the server to do something, or (without `do`) does what its data attributes say.

    Keywords: `kind` (primary, stop, or ""), `on` (whether it can be pressed), `ask` (what it says before the second
    press), `ask_more` (values behind that, e.g. names), `title`, `data` ({attribute: value}).
    """
    facts = {"data-do": json.dumps(dict(do)) if do is not None else None, "data-ask": more.get("ask")}
    facts["data-ask-more"] = more.get("ask_more")
    facts |= {"title": more.get("title")}
    facts |= {f"data-{name}": value for name, value in (more.get("data") or {}).items()}
    said = "".join(f' {name}="{escape(str(value))}"' for name, value in facts.items() if value is not None)
    kind = f" lk-{more['kind']}" if more.get("kind") else ""
    return (
        f'<button type="button" class="lk-button{kind}"{said}{"" if more.get("on", True) else " disabled"}>'
        f"{escape(label)}</button>"
    )


def shows(label: str, view: Mapping[str, Any], panel: str = "", **more: Any) -> str:
    """A button that changes what a panel (its own by default) looks at; other keywords as in `button`."""
    data = {"set": json.dumps(dict(view)), **({"panel": panel} if panel else {}), **(more.pop("data", None) or {})}
    return button(label, None, data=data, **more)


def fact(label: str, *values: str) -> str:
    """A label and its value, of pieces that are already HTML or numbers."""
    return f'<div class="lk-fact"><dt>{escape(label)}</dt><dd>{" ".join(values)}</dd></div>'


def number(value: Any) -> str:
    """A figure in a node of its own, so that the words beside it can be translated."""
    return f'<span class="lk-number">{escape(str(value))}</span>'


def own(text: str) -> str:
    """A user's words in bold, in a node of their own that no language changes."""
    return f'<b class="notranslate">{escape(text)}</b>'


def word(text: str) -> str:
    """Words in a node of their own."""
    return f"<span>{escape(text)}</span>"


def soft(text: str) -> str:
    """Words that only explain, in a node of their own."""
    return f'<span class="lk-soft">{escape(text)}</span>'


def megabytes(size: int) -> str:
    """E.g. `144 MB`, `2.1 GB`, `0.3 MB`, `4 kB`."""
    if size < MB / 10:
        return f"{max(size, 0) / 1e3:.0f} kB"
    if size >= GB:
        return f"{size / GB:.1f} GB"
    return f"{size / MB:.0f} MB" if size >= 10 * MB else f"{size / MB:.1f} MB"


def moment(seconds: float) -> str:
    """A time since 1970 as `2026-11-21 19:40`, local."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return ""


def rate(value: float) -> str:
    """A learning rate as people write it: `1e-4`, `0.0003`, `0`."""
    if value == 0:
        return "0"
    base, _, power = f"{value:.2e}".partition("e")
    return f"{base.rstrip('0').rstrip('.')}e{int(power)}" if value < 0.01 else f"{value:g}"
