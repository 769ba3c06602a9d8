"""Pictures drawn on the way, as strips over time: one for each prompt, newest last."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lib_lora.ui.html_parts import number, word
from lib_lora.ui.thumbs import Thumbs
from lib_lora.ui.trainer import Sample

SHOWN = 24  # pictures of one prompt; beyond that every second, third, ... is left out


def strips(samples: Sequence[Sample], thumbs: Thumbs, run: str) -> str:
    """All prompts' strips. A picture opens large; its place in `samples` of the run called `run` says which."""
    by_prompt: dict[str, list[tuple[int, Sample]]] = {}
    for place, sample in enumerate(samples):
        by_prompt.setdefault(sample.prompt, []).append((place, sample))
    return "".join(_strip(prompt, found, thumbs, run) for prompt, found in by_prompt.items())


def evenly(items: Sequence[tuple[int, Sample]], most: int) -> list[tuple[int, Sample]]:
    """At most so many, the first and the last always among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def picture(url: str, caption: str, look: str, key: str) -> str:
    """A picture that opens large. `look` is what the browser asks for then (JSON), `key` tells it from its siblings."""
    return (
        f'<figure class="lk-pic" data-key="{escape(key)}"><button type="button" class="lk-open" '
        f'data-look="{escape(look)}" title="Show large"><img src="{url}" alt="" loading="lazy"></button>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _strip(prompt: str, found: Sequence[tuple[int, Sample]], thumbs: Thumbs, run: str) -> str:
    import json

    shown = evenly(found, SHOWN)
    pictures = []
    for place, sample in shown:
        url = thumbs.url(sample.path)
        if url:
            look = json.dumps({"run": run, "sample": place})
            caption = word("step") + " " + number(sample.step)
            pictures.append(picture(url, caption, look, f"{sample.step}-{place}"))
    if not pictures:
        return ""
    left = len(found) - len(shown)
    more = f' <span class="lk-soft">{number(left)} {word("more between them")}</span>' if left else ""
    return (
        f'<section class="lk-strip" data-key="{escape(prompt)}"><h4>'
        f'<span class="notranslate">{escape(prompt)}</span>{more}</h4>'
        f'<div class="lk-pics" tabindex="0">{"".join(pictures)}</div></section>'
    )
