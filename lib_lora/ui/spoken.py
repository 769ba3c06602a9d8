"""Sentences with values in them, as HTML: words and values in nodes of their own, so that the words can be translated.

The webui replaces whole text nodes. "there is no folder 'rex'; check the name" is shown as three of them: the words
before the value, the value, which no language changes, and the words behind it.
"""

from __future__ import annotations

import re
from html import escape

from lib_lora.train.config import SECTIONS

_UNITS = r"(?: ?(?:GB|MB|GiB|MiB|kB|px|%|h|min|s)\b)?"
_ENDINGS = "safetensors|ckpt|pt|png|jpg|jsonl|json|toml|txt"
_SET = r"(?:\[[^\]]*\]|'[^']*'|\"[^\"]*\"|[^\s;,]+)"
_VALUE = re.compile(
    # a name before a figure, what is quoted, a tag, a setting with its value, a file, a place, a number
    r"^\S+(?=: \d)|(?<![\w'\"])(?P<quote>['\"]).+?(?P=quote)(?!\w)"
    r"|<(?:lora|lyco|hypernet):[^<>\s]*>"
    rf"|\b(?:{'|'.join((*SECTIONS, 'concept'))})\.[a-z_0-9]+(?: = {_SET}(?: or {_SET})*)?"
    rf"|[^\s'\"]+\.(?:{_ENDINGS})\b"
    r"|https?://[^\s;,]+|(?<![\w.])(?:~|[A-Za-z]:)?/[^\s;,]+"
    rf"|\bSD [12]\b|(?<![\w.-])[-+]?\d+(?:[.,:/]\d+)*(?:e[-+]?\d+)?(?!\w){_UNITS}",
    re.DOTALL,
)


def pieces(text: str) -> list[tuple[str, bool]]:
    """The text's parts without the spaces around them, in order, and whether each is a value."""
    found: list[tuple[str, bool]] = []
    at = 0
    for value in _VALUE.finditer(text):
        found += [(text[at : value.start()].strip(), False), (value[0], True)]
        at = value.end()
    found.append((text[at:].strip(), False))
    return [(part, is_value) for part, is_value in found if part]


def spoken(text: str) -> str:
    """The text as HTML, escaped; as it is where it has no values."""
    out, at = [], 0
    for value in _VALUE.finditer(text):
        out += [_words(text[at : value.start()]), f'<span class="notranslate">{escape(value[0])}</span>']
        at = value.end()
    return "".join([*out, _words(text[at:])]) if out else escape(text)


def _words(text: str) -> str:
    """Words in a node of their own, the spaces around them outside of it."""
    plain = text.strip()
    if not any(sign.isalpha() for sign in plain):
        return escape(text)
    before, _, after = text.partition(plain)
    return f"{before}<span>{escape(plain)}</span>{after}"
