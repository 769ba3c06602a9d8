"""Pictures that the browser sent: where gradio has put them, under which names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def upload_folder() -> Path:
    """Where gradio keeps what browsers send."""
    return Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio").resolve()


def uploads(given: Any) -> tuple[list[tuple[Path, str]], list[str]]:
    """The files of a gr.File component: (path, name) of those the browser sent, and the names of all others.

    A forged request can name any file of this machine as an upload, and gradio 3 even copies it: such are refused.
    """
    good: list[tuple[Path, str]] = []
    bad: list[str] = []
    for one in given if isinstance(given, (list, tuple)) else [given] if given else []:
        path = Path(str(getattr(one, "name", one)))
        told = str(getattr(one, "orig_name", None) or path)
        ours = all(_within(place) for place in _places(path, told))
        if ours and path.is_file():
            good.append((path, os.path.basename(told)))
        else:
            bad.append(os.path.basename(told))
    return good, bad


def _places(path: Path, told: str) -> Iterable[Path]:
    """The file, and the one it was made from if that is one of this machine."""
    yield path
    if os.path.isabs(told) or os.path.exists(told):
        yield Path(told)


def _within(path: Path) -> bool:
    folders = {upload_folder(), Path(tempfile.gettempdir()).resolve() / "gradio"}
    return any(path.resolve().is_relative_to(folder) for folder in folders)
