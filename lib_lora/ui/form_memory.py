"""The form as it was last, kept across reloads and restarts: what was sent, and what was typed and not sent."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib_lora.errors import BadFile
from lib_lora.files.tensors import atomic_file
from lib_lora.ui.form_page import COUNT, KIND_LABELS, QUALITY_LABELS

log = logging.getLogger(__name__)
FILE = "form.json"
LARGEST = 1 << 20  # bytes


class FormMemory:
    """The file in `folder` that the form's values are kept in."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def load(self) -> tuple[list[Any], str] | None:
        """The values and the name that was proposed, or None without any that can be used; that is told in the log.

        The steps are None where they were no number.
        """
        try:
            if self.path.stat().st_size > LARGEST:
                raise ValueError("too large")
            found = json.loads(self.path.read_bytes())
            values, proposed = found["values"], found.get("proposed", "")
            if not isinstance(proposed, str) or not _of_the_form(values):
                raise ValueError("not a form's values")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            log.warning("%s is damaged (%s); the form begins anew", self.path, error)
            return None
        values[6] = values[6] if _is_number(values[6]) else None  # emptied at that moment, to type another
        return list(values), proposed

    def save(self, values: Sequence[Any], proposed: str) -> None:
        """Keep the values if they are others than those kept. A full disk is told in the log only.

        `proposed`: the name that was last proposed; while it is in the form, another one may take its place.
        """
        data = json.dumps({"values": list(values), "proposed": proposed}, ensure_ascii=False).encode(
            "utf-8", errors="replace"
        )
        try:
            if self.path.is_file() and self.path.read_bytes() == data:
                return
            with atomic_file(self.path) as file:
                file.write(data)
        except (BadFile, OSError) as error:
            log.warning("the form is not remembered: %s", error)


def _of_the_form(values: Any) -> bool:
    if not isinstance(values, list) or len(values) != COUNT:
        return False
    texts = [*values[:6], values[7]]
    labels = values[1] in KIND_LABELS.values() and values[2] in QUALITY_LABELS.values()
    return all(isinstance(text, str) for text in texts) and labels


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
