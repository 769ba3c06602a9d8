"""Named starting points: settings that differ from the defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lib_lora.errors import BadConfig
from lib_lora.train.config import JobConfig, make_job

# The first three are what the page offers first. Memory is what full-size SD1 (512 px) and SDXL (1024 px) need.
SUBJECT: Mapping[str, Any] = {
    "network.rank": 16,
    "network.alpha": 8.0,
    "network.train_text_encoder": True,
    "optimizer.lr": 1e-4,
    "optimizer.te_lr": 1e-5,
    "training.te_fraction": 0.7,
    "training.steps": 600,
    "training.batch_size": 2,
}
STYLE: Mapping[str, Any] = {
    "network.rank": 32,
    "network.alpha": 16.0,
    "optimizer.lr": 1e-4,
    "training.steps": 1500,
    "training.batch_size": 2,
    "training.offset_noise": 0.05,
}
SMALL: Mapping[str, Any] = {"training.batch_size": 1, "training.checkpointing": True, "optimizer.name": "adamw8bit"}
# In every preset: whoever names a trigger wants it to call, also where captions were written without it.
ALWAYS: Mapping[str, Any] = {"data.prepend_trigger": True}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "subject": SUBJECT,
    "style": STYLE,
    "quick test": {
        "network.rank": 8,
        "network.alpha": 8.0,
        "optimizer.lr": 5e-4,
        "training.steps": 50,
    },
    "subject, 6 GB": {**SUBJECT, **SMALL, "network.train_text_encoder": False, "training.steps": 1200},
    "style, 8 GB": {**STYLE, **SMALL, "training.steps": 3000},
    "subject, SDXL": {
        **SUBJECT,
        **SMALL,
        "network.train_text_encoder": False,
        "network.alpha": 8.0,
        "data.resolution": 1024,
        "training.steps": 1200,
    },
    "single picture": {
        "network.rank": 8,
        "network.alpha": 8.0,
        "optimizer.lr": 1e-4,
        "training.steps": 200,
        "data.crop": "random",
    },
    "DreamBooth": {
        **SMALL,
        "method.name": "dreambooth",
        "method.as_lora": 64,
        "optimizer.lr": 2e-6,
        "prior.weight": 1.0,
        "training.steps": 1000,
    },
    "textual inversion": {
        "method.name": "textual_inversion",
        "method.tokens": 4,
        "method.token_lr": 5e-3,
        "training.steps": 2000,
    },
    "pivotal tuning": {
        "method.name": "pivotal_tuning",
        "network.rank": 16,
        "network.alpha": 8.0,
        "optimizer.lr": 1e-4,
        "method.token_lr": 5e-4,
        "training.steps": 1000,
        "training.batch_size": 2,
    },
}


def preset_job(name: str, values: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> JobConfig:
    """The preset's job with `{"section.name": value}` laid over. Raises BadConfig for an unknown preset."""
    if name not in tuple(PRESETS):  # whatever a program sends as name, hashable or not
        raise BadConfig(f"preset {name!r} is unknown; presets are {', '.join(PRESETS)}")
    return make_job({**ALWAYS, **PRESETS[name], **(values or {})}, overrides)
