"""What a trained file says about itself: kohya's ss_* names and modelspec, all strings, all from the job.

Times of day are left out on purpose: equal jobs give equal files. The run's events.jsonl has them.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from lib_lora import __version__
from lib_lora.ports import DiffusionModel
from lib_lora.train.captions import Dataset
from lib_lora.train.config import JobConfig

VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
ARCHITECTURES = {"sd1": "stable-diffusion-v1", "sd2": "stable-diffusion-v2-512", "sdxl": "stable-diffusion-xl-v1-base"}


def metadata_of(job: JobConfig, model: DiffusionModel, dataset: Dataset, step: int) -> dict[str, str]:
    """The metadata of the network after `step` steps."""
    network, optimizer, training, data = job.network, job.optimizer, job.training, job.data
    v_prediction = job.base.prediction == "v_prediction" or (
        job.base.prediction == "auto" and model.prediction_type == "v_prediction"
    )
    version = VERSIONS.get(model.version, model.version)
    facts: dict[str, object] = {
        "ss_v2": model.version == "sd2",
        "ss_base_model_version": version + ("_v" if v_prediction and model.version == "sd2" else ""),
        "ss_sd_model_name": Path(job.base.checkpoint).name or model.name,
        "ss_output_name": job.output.name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": network.rank,
        "ss_network_alpha": network.alpha,
        "ss_network_args": _conv_args(job),
        "ss_learning_rate": optimizer.lr,
        "ss_unet_lr": optimizer.lr if network.train_unet else None,
        "ss_text_encoder_lr": optimizer.te_lr if network.train_text_encoder else None,
        "ss_optimizer": optimizer.name,
        "ss_lr_scheduler": optimizer.schedule,
        "ss_lr_warmup_steps": optimizer.warmup_steps,
        "ss_steps": step,
        "ss_max_train_steps": None if training.epochs else training.steps,
        "ss_num_epochs": training.epochs,
        "ss_batch_size_per_device": training.batch_size,
        "ss_gradient_accumulation_steps": training.accumulation,
        "ss_gradient_checkpointing": training.checkpointing,
        "ss_max_grad_norm": training.clip,
        "ss_min_snr_gamma": training.min_snr_gamma or None,
        "ss_noise_offset": training.offset_noise or None,
        "ss_seed": training.seed,
        "ss_resolution": f"({data.resolution}, {data.resolution})",
        "ss_num_train_images": len(dataset.visits()),
        "ss_random_crop": data.crop == "random",
        "ss_flip_aug": data.flip,
        "ss_tag_frequency": tag_frequency(dataset),
        "ss_training_comment": f"trained with sd-webui-lorakit {__version__}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": job.output.name,
        "modelspec.architecture": ARCHITECTURES.get(model.version, model.version) + "/lora",
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.prediction_type": "v" if v_prediction else "epsilon",
        "modelspec.resolution": f"{data.resolution}x{data.resolution}",
        "modelspec.trigger_phrase": " ".join(f"{data.trigger} {data.class_word}".split()) or None,
    }
    return {name: _text(value) for name, value in facts.items() if value is not None}


def tag_frequency(dataset: Dataset) -> dict[str, dict[str, int]]:
    """{"folder": {"tag": how often}} of the captions' comma-separated tags, as the webui's card shows them."""
    counts: dict[str, Counter[str]] = {}
    for item in dataset.items:
        tags = [tag.strip() for tag in item.caption.split(",") if tag.strip()]
        counts.setdefault(item.path.parent.name, Counter()).update(tags)
    return {folder: dict(sorted(counter.items())) for folder, counter in sorted(counts.items())}


def _conv_args(job: JobConfig) -> dict[str, object] | None:
    if job.network.type != "locon":
        return None
    return {"conv_dim": job.network.conv_rank, "conv_alpha": job.network.conv_alpha}


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True) if isinstance(value, dict) else str(value)
