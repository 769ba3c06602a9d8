"""Paths as users give them."""

from __future__ import annotations

import os
from pathlib import Path

from lib_lora.errors import BadConfig


def given_path(path: str, what: str) -> Path:
    """The path a user gave for the setting or field `what`, resolved; blanks and quotes round it do not count.

    Raises BadConfig for a text that can be no path: NUL, halves of surrogate pairs, links in circles, nothing at all.
    """
    text = path.strip().strip("'\"")
    try:
        if not text:
            raise ValueError("it is empty")
        return Path(os.path.expanduser(text)).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise BadConfig(f"{what} = {path!r} is not a path ({error}); give another") from None
