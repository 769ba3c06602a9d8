"""What every part of the page writes: times in words, and messages. Everything from a user is escaped."""

from __future__ import annotations

from html import escape

from lib_lora.ui.spoken import spoken


def time_words(seconds: float | None) -> str:
    """E.g. `1 h 05 min`, `3 min 20 s`, `8 s`; empty for None."""
    if seconds is None:
        return ""
    whole = max(round(seconds), 0)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def message(text: str, bad: bool = False) -> str:
    """A line of text for the user; empty for no text."""
    lines = "<br>".join(spoken(line) for line in text.splitlines())
    return f'<div class="lk-message{" lk-bad" if bad else ""}" role="alert">{lines}</div>' if text else ""


def of_job(id: str, text: str, until: str) -> str:
    """What is true until a job "begins" or "ends"; javascript then takes it back."""
    return f'<div data-lk-job="{escape(id)}" data-lk-until="{until}">{message(text)}</div>'
