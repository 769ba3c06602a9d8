"""What a network file says about itself: the ss_*, sshs_* and modelspec records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

_BASE = {
    ("sd1", False): "sd_v1",
    ("sd1", True): "sd_v1",
    ("sd2", False): "sd_v2",
    ("sd2", True): "sd_v2_v",
    ("sdxl", False): "sdxl_base_v1-0",
    ("sdxl", True): "sdxl_base_v1-0",
}
_ARCHITECTURE = {
    ("sd1", False): "stable-diffusion-v1",
    ("sd1", True): "stable-diffusion-v1",
    ("sd2", False): "stable-diffusion-v2-512",
    ("sd2", True): "stable-diffusion-v2-768-v",
    ("sdxl", False): "stable-diffusion-xl-v1-base",
    ("sdxl", True): "stable-diffusion-xl-v1-base",
}
LORA, EMBEDDING, CHECKPOINT = "lora", "textual-inversion", ""  # what ModelSpec knows of: networks of all types are LoRA
_STABILITY = "https://github.com/Stability-AI/generative-models"


@dataclass(frozen=True)
class TrainingRecord:
    """What is known of a training run. Times in seconds since 1970; sizes in pixels as (width, height).

    `settings` are further `ss_*` fields by their names without that prefix. `adapter` says what kind of file it is.
    """

    output_name: str
    rank: int
    alpha: float
    base_version: str = "sd1"
    v_prediction: bool = False
    network_module: str = "networks.lora"
    network_args: Mapping[str, object] = field(default_factory=dict)
    sd_model_name: str = ""
    sd_model_hash: str = ""
    new_sd_model_hash: str = ""
    clip_skip: int = 1
    seed: int = 0
    steps: int = 0
    max_train_steps: int = 0
    epoch: int = 0
    num_epochs: int = 0
    learning_rate: float = 0.0
    unet_lr: float | None = None
    text_encoder_lr: float | None = None
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    optimizer: str = "AdamW"
    batch_size_per_device: int = 1
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    mixed_precision: str = "no"
    min_snr_gamma: float | None = None
    noise_offset: float | None = None
    resolution: tuple[int, int] = (512, 512)
    num_train_images: int = 0
    num_reg_images: int = 0
    bucket_info: Mapping[str, Any] = field(default_factory=dict)
    dataset_dirs: Mapping[str, Any] = field(default_factory=dict)
    reg_dataset_dirs: Mapping[str, Any] = field(default_factory=dict)
    tag_frequency: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    training_started_at: float | None = None
    training_finished_at: float | None = None
    training_comment: str = ""
    title: str = ""
    trigger_phrase: str = ""
    thumbnail: str = ""  # a data: URL
    description: str = ""
    tags: str = ""  # divided by commas
    implementation_version: str = ""
    timestep_range: tuple[int, int] | None = None
    adapter: str = LORA
    settings: Mapping[str, object] = field(default_factory=dict)


_NOT_SS = (
    *("base_version", "v_prediction", "rank", "alpha", "title", "trigger_phrase", "thumbnail", "description", "tags"),
    *("implementation_version", "timestep_range", "adapter", "settings"),
)


def build_metadata(record: TrainingRecord) -> dict[str, str]:
    """The `ss_*` and `modelspec.*` fields of a file, all strings, sorted. Unknown (None or "") fields are left out."""
    fields = {f"ss_{name}": getattr(record, name) for name in record.__dataclass_fields__ if name not in _NOT_SS}
    fields |= {f"ss_{name}": value for name, value in record.settings.items()}
    fields |= {
        "ss_network_dim": record.rank,
        "ss_network_alpha": record.alpha,
        "ss_v2": record.base_version == "sd2",
        "ss_base_model_version": _BASE.get((record.base_version, record.v_prediction), record.base_version),
        "ss_resolution": "({}, {})".format(*record.resolution),
    }
    fields |= _modelspec(record)
    return {name: _text(value) for name, value in sorted(fields.items()) if value is not None and value != ""}


def modelspec(record: TrainingRecord) -> dict[str, str]:
    """The `modelspec.*` fields alone, for files that are no networks."""
    return {
        name: _text(value) for name, value in sorted(_modelspec(record).items()) if value is not None and value != ""
    }


def _modelspec(record: TrainingRecord) -> dict[str, Any]:
    """Stability AI's model metadata standard, version 1.0.1."""
    kind = (record.base_version, record.v_prediction)
    native = record.base_version == "sdxl" or record.adapter != LORA  # whose names of layers the file is in
    fields = {
        "sai_model_spec": "1.0.1",
        "architecture": "/".join(filter(None, (_ARCHITECTURE.get(kind, record.base_version), record.adapter))),
        "implementation": _STABILITY if native else "diffusers",
        "implementation_version": record.implementation_version,
        "title": record.title or record.output_name,
        "description": record.description,
        "resolution": "{}x{}".format(*record.resolution),
        "prediction_type": "v" if record.v_prediction else "epsilon",
        "timestep_range": "{},{}".format(*record.timestep_range) if record.timestep_range else None,
        "trigger_phrase": record.trigger_phrase,
        "tags": record.tags,
        "thumbnail": record.thumbnail,
        "encoder_layer": record.clip_skip,
    }
    if record.training_finished_at is not None:
        moment = datetime.fromtimestamp(record.training_finished_at, tz=timezone.utc)
        fields["date"] = moment.isoformat(timespec="seconds")
    return {f"modelspec.{name}": value for name, value in fields.items()}


def _text(value: object) -> str:
    """As kohya writes values: str() of scalars, JSON of anything nested."""
    nested = isinstance(value, Mapping) or (isinstance(value, Iterable) and not isinstance(value, str))
    return json.dumps(value, ensure_ascii=False, sort_keys=True) if nested else str(value)
