"""The site Civitai's record of a network, which helper extensions keep beside the file as NAME.civitai.info.

The webui itself never reads it. Here its trigger words and its description stand in for what the user did not write.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ACTIVATION, DESCRIPTION = "activation text", "description"  # as the webui calls them in the user's own notes
ENDING = ".civitai.info"

_MARKUP = re.compile(r"<[a-zA-Z/!?][^>]*>?")  # what is not closed as well: before 1.8 cards show text as html


def read_record(path: Path) -> dict[str, str]:
    """Trigger words and description of a record, under the names of the user's notes; empty where it tells nothing."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        words = [" ".join(str(word).split()).strip(" ,") for word in told.get("trainedWords") or []]
        about = told.get("description") or (told.get("model") or {}).get("description") or ""
        text = " ".join(_MARKUP.sub(" ", html.unescape(about)).split())
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return {}
    found = {ACTIVATION: ", ".join(filter(None, words)), DESCRIPTION: text}
    return {name: value for name, value in found.items() if value}


def complete(item: dict[str, Any]) -> None:
    """Add the record beside a card's file to the user's notes in `item`, which come first.

    The editor of a card shows what is in the notes: what the user saves there is the user's own from then on.
    """
    record = read_record(Path(item["filename"]).with_suffix(ENDING))
    if not record:
        return
    if item.get(DESCRIPTION):  # from a .txt
        record[DESCRIPTION] = item[DESCRIPTION]
    item["user_metadata"] = {**record, **item["user_metadata"]}
    item[DESCRIPTION] = item["user_metadata"].get(DESCRIPTION)


def attach(pages: Iterable[Any]) -> None:
    """Let the built-in extension's page of cards read the records: for each card it asks itself for the notes."""
    for page in pages:
        if page.name == "lora":
            page.read_user_metadata = _reading_both(page.read_user_metadata)


def _reading_both(read: Callable[..., None]) -> Callable[..., None]:
    def read_both(item: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        read(item, *args, **kwargs)
        complete(item)

    return read_both
