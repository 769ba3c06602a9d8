"""The folder of pictures as a user types it."""

from __future__ import annotations

import os
from pathlib import Path

from lib_lora.errors import BadDataset


def check_folder(text: str) -> Path:
    """The folder of pictures a user typed. Raises BadDataset saying what is wrong with it."""
    cleaned = text.strip().strip("'\"")
    if not cleaned:
        raise BadDataset("the folder of pictures is empty; type or paste its path")
    folder = Path(os.path.expanduser(cleaned))  # unlike Path's methods these raise for no text at all
    if not os.path.exists(folder):
        raise BadDataset(f"there is no folder {cleaned!r} on this machine; check the path")
    if not os.path.isdir(folder):
        raise BadDataset(f"{cleaned!r} is a file; give the folder that holds the pictures")
    return folder
