"""The page's own HTML: progress and messages. Everything from a user is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lib_lora.ui.service import TrainStatus
from lib_lora.ui.spoken import spoken

WORDS = {
    "idle": "Ready",
    "running": "Training",
    "finished": "Finished",
    "failed": "Failed",
    "cancelled": "Stopped",
}


def time_words(seconds: float | None) -> str:
    """E.g. `1 h 05 min`, `3 min 20 s`, `8 s`; empty for None."""
    if seconds is None:
        return ""
    whole = max(round(seconds), 0)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def progress(status: TrainStatus) -> str:
    """State, bar, figures, loss curve and message."""
    share = status.step / status.total if status.total else 0.0
    share = 1.0 if status.state == "finished" else share
    figures = []
    if status.total:
        figures.append(f"step {status.step} of {status.total}")
    if status.loss is not None:
        figures.append(f"loss {status.loss:.4f}")
    if status.state == "running" and status.eta_s is not None:
        figures.append(f"{time_words(status.eta_s)} left")
    head = f"<b>{WORDS[status.state]}</b>" + (f" {escape(status.name)}" if status.name else "")
    note = f'<p class="lk-note">{escape(status.message)}</p>' if status.message else ""
    return (
        f'<div class="lk-progress lk-{status.state}" role="status"><div class="lk-line"><span>{head}</span>'
        f"<span>{' &middot; '.join(figures)}</span></div>"
        f'<div class="lk-bar"><div style="width:{share:.1%}"></div></div>{curve(status.losses)}{note}</div>'
    )


def curve(losses: Sequence[float]) -> str:
    """The losses as a small line, smoothed; empty for fewer than two."""
    if len(losses) < 2:
        return ""
    smooth, mean = [], losses[0]
    for loss in losses:
        mean = 0.9 * mean + 0.1 * loss
        smooth.append(mean)
    low, high = min(smooth), max(smooth)
    span = (high - low) or 1.0
    points = " ".join(
        f"{600 * i / (len(smooth) - 1):.1f},{4 + 52 * (high - value) / span:.1f}" for i, value in enumerate(smooth)
    )
    return (
        '<svg class="lk-curve" viewBox="0 0 600 60" preserveAspectRatio="none" role="img" '
        f'aria-label="loss, smoothed: {losses[0]:.4f} to {smooth[-1]:.4f}"><title>Loss, smoothed</title>'
        f'<polyline points="{points}"/></svg>'
    )


def message(text: str, bad: bool = False) -> str:
    """A line of text for the user; empty for no text."""
    lines = "<br>".join(spoken(line) for line in text.splitlines())
    return f'<div class="lk-message{" lk-bad" if bad else ""}" role="alert">{lines}</div>' if text else ""


def base_line(name: str) -> str:
    """The line above the form that says what is trained against."""
    return f'<div class="lk-base">Trains against <b>{escape(name)}</b></div>'
