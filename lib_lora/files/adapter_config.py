"""PEFT's `adapter_config.json` beside a network file, and what diffusers writes of it into the metadata."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from lib_lora.keys import peft_config
from lib_lora.keys.layer_key import PARTS

NAME, WEIGHTS = "adapter_config.json", "adapter_model"
_LARGEST = 1 << 20
log = logging.getLogger(__name__)


def peft_configs(path: Path, metadata: Mapping[str, str]) -> dict[str, peft_config.Config]:
    """`{part: configuration}` for a network file, empty where nothing is known.

    The file's own metadata come first. Otherwise `adapter_config.json` counts for a file that has PEFT's own name,
    `adapter_model`; for one that was renamed, `<its name>.adapter_config.json`.
    """
    if found := peft_config.from_metadata(metadata):
        return found
    beside = path.with_name(NAME if path.stem == WEIGHTS else f"{path.stem}.{NAME}")
    config = peft_config.parse(_text(beside))
    return dict.fromkeys(PARTS, config) if config else {}


def _text(path: Path) -> str:
    """The text of a small file, or "" if there is none."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            return ""
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        log.warning("cannot read %s (%s); scales of PEFT layers beside it count as 1", path, error)
        return ""
