"""Which webui this is, and access to its modules."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

WEBUI, FORGE = "webui", "forge"


def detect() -> str | None:
    """`WEBUI`, `FORGE`, or None outside of any. Looks only whether packages exist, imports nothing of them."""
    if importlib.util.find_spec("modules") is None or importlib.util.find_spec("modules.shared") is None:
        return None
    return FORGE if importlib.util.find_spec("modules_forge") is not None else WEBUI


class Webui:
    """`webui.shared` is the webui's `modules.shared`, looked up at each use: a UI reload may put a new one there."""

    def __getattr__(self, name: str) -> Any:
        return importlib.import_module(f"modules.{name}")
