"""Named starting points: settings that differ from the defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lib_lora.errors import BadConfig
from lib_lora.train.config import JobConfig, make_job

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "subject": {
        "network.rank": 16,
        "network.alpha": 8.0,
        "network.train_text_encoder": True,
        "optimizer.lr": 1e-4,
        "optimizer.te_lr": 1e-5,
        "training.steps": 600,
        "training.batch_size": 2,
    },
    "style": {
        "network.rank": 32,
        "network.alpha": 16.0,
        "optimizer.lr": 1e-4,
        "training.steps": 1500,
        "training.batch_size": 2,
        "training.offset_noise": 0.05,
    },
    "quick test": {
        "network.rank": 8,
        "network.alpha": 8.0,
        "optimizer.lr": 5e-4,
        "training.steps": 50,
    },
}


def preset_job(name: str, values: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> JobConfig:
    """The preset's job with `{"section.name": value}` laid over. Raises BadConfig for an unknown preset."""
    if name not in tuple(PRESETS):  # whatever a program sends as name, hashable or not
        raise BadConfig(f"preset {name!r} is unknown; presets are {', '.join(PRESETS)}")
    return make_job({**PRESETS[name], **(values or {})}, overrides)
