"""What a trained file says about itself, from the job alone.

Times of day are left out on purpose: equal jobs give equal files. The run's events.jsonl has them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from lib_lora import __version__
from lib_lora.files.metadata import TrainingRecord
from lib_lora.ports import DiffusionModel
from lib_lora.train.captions import Dataset
from lib_lora.train.config import JobConfig

OPTIMIZER_NAMES = {"adamw": "AdamW", "adamw8bit": "AdamW8bit"}


def prediction_of(job: JobConfig, model: DiffusionModel) -> str:
    """ "epsilon" or "v_prediction": what the job says, or else the model."""
    return model.prediction_type if job.base.prediction == "auto" else job.base.prediction


def record_of(job: JobConfig, model: DiffusionModel, dataset: Dataset, step: int) -> TrainingRecord:
    """The record of the network after `step` steps."""
    network, optimizer, training, data = job.network, job.optimizer, job.training, job.data
    visited = step * training.batch_size * training.accumulation // len(dataset.visits())
    return TrainingRecord(
        output_name=job.output.name,
        rank=network.rank,
        alpha=network.alpha,
        base_version=model.version,
        v_prediction=prediction_of(job, model) == "v_prediction",
        network_args=_conv_args(job),
        sd_model_name=Path(job.base.checkpoint).name or model.name,
        seed=training.seed,
        steps=step,
        max_train_steps=0 if training.epochs else training.steps,
        epoch=min(visited, training.epochs or visited),  # the last step of the last epoch may be a short one
        num_epochs=training.epochs or 0,
        learning_rate=optimizer.lr,
        unet_lr=optimizer.lr if network.train_unet else None,
        text_encoder_lr=optimizer.te_lr if network.train_text_encoder else None,
        lr_scheduler=optimizer.schedule,
        lr_warmup_steps=optimizer.warmup_steps,
        optimizer=OPTIMIZER_NAMES[optimizer.name],
        batch_size_per_device=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        gradient_checkpointing=training.checkpointing,
        min_snr_gamma=training.min_snr_gamma or None,
        noise_offset=training.offset_noise or None,
        resolution=(data.resolution, data.resolution),
        num_train_images=len(dataset.visits()),
        dataset_dirs=_folders(dataset),
        tag_frequency=tag_frequency(dataset),
        training_comment=f"trained with sd-webui-lorakit {__version__}",
        trigger_phrase=" ".join(f"{data.trigger} {data.class_word}".split()),
    )


def tag_frequency(dataset: Dataset) -> dict[str, dict[str, int]]:
    """{"folder": {"tag": how often}} of the captions' comma-separated tags, as the webui's card shows them."""
    counts: dict[str, Counter[str]] = {}
    for item in dataset.items:
        tags = [tag.strip() for tag in item.caption.split(",") if tag.strip()]
        counts.setdefault(item.path.parent.name, Counter()).update(tags)
    return {folder: dict(sorted(counter.items())) for folder, counter in sorted(counts.items())}


def _folders(dataset: Dataset) -> dict[str, dict[str, int]]:
    folders: dict[str, dict[str, int]] = {}
    for item in dataset.items:
        about = folders.setdefault(item.path.parent.name, {"n_repeats": item.repeats, "img_count": 0})
        about["img_count"] += 1
    return folders


def _conv_args(job: JobConfig) -> dict[str, object]:
    if job.network.type != "locon":
        return {}
    return {"conv_dim": job.network.conv_rank, "conv_alpha": job.network.conv_alpha}
