"""Every word that the page can show, found by building it and by rendering its HTML in every state.

What a user wrote has MARK in each of its words here, so that it can be told from ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

MARK = "§"
VOID = ("img", "input", "br", "hr", "meta", "link", "line", "polyline", "path")
SILENT = ("script", "style", "code", "pre", "textarea", "del")
SPOKEN = ("title", "placeholder", "aria-label", "data-ask")  # attributes that are read
_NUMBER = re.compile(r"[\W\d_]*(?:(?:s|h|min|MB|GB|kB|px|e|x|SD ?\d|SDXL|v\d)[\W\d_]*)*")
_KEY = re.compile(r"[a-z]+\.[a-z0-9_]+")
_FILE = re.compile(r"/\S+|\S+\.(?:safetensors|json|toml|png|pt|txt)")


class _Reader(HTMLParser):
    """Texts and spoken attributes of HTML, but for code and what is marked as not to be translated."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = {name: value or "" for name, value in attrs}
        classes = facts.get("class", "").split()
        silent = self._silent() or tag in SILENT or bool({"notranslate", "lk-number", "lk-hidden"} & set(classes))
        if not self._silent():
            self.found += [facts[name] for name in SPOKEN if name in facts]
            self.found += facts.get("data-names", "").split(",")  # of a plot's lines, shown under the mouse
        if tag not in VOID:
            self._open.append((tag, silent))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not self._silent():
            self.found.append(data)

    def _silent(self) -> bool:
        return bool(self._open) and self._open[-1][1]


def words_of(html: str) -> list[str]:
    """The texts of HTML that a language has other words for."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return [text for text in map(str.strip, reader.found) if is_words(text)]


def is_words(text: str) -> bool:
    """Whether it is something to translate: no number, size, setting's key, file's name, or words of a user's."""
    if not text or _NUMBER.fullmatch(text) or _KEY.fullmatch(text) or _FILE.fullmatch(text):
        return False
    words = [word for word in text.split() if any(sign.isalpha() for sign in word)]
    return not all(MARK in word for word in words)


def words_of_page(config: dict[str, Any]) -> Iterator[str]:
    """The words of a built gradio page: labels, hints, buttons, choices and HTML that is in sight."""
    parts = {part["id"]: part for part in config["components"]}

    def walk(node: dict[str, Any]) -> Iterator[str]:
        part = parts[node["id"]]
        if "lk-hidden" in (part["props"].get("elem_classes") or ()):
            return
        yield from _words_of_part(part)
        for child in node.get("children") or ():
            yield from walk(child)

    for child in config["layout"]["children"]:
        yield from walk(child)


def _words_of_part(part: dict[str, Any]) -> Iterator[str]:
    props, kind = part["props"], part["type"]
    texts = [props.get("info"), props.get("placeholder")]
    if props.get("show_label", True) and kind not in ("button", "html", "state", "markdown"):
        texts.append(props.get("label"))
    if kind == "button":
        texts.append(props.get("value"))
    for choice in props.get("choices") or ():
        texts.append(choice[0] if isinstance(choice, (list, tuple)) else choice)
    yield from (text.strip() for text in texts if isinstance(text, str) and is_words(text.strip()))
    if kind in ("html", "markdown") and isinstance(props.get("value"), str):
        yield from words_of(props["value"])
