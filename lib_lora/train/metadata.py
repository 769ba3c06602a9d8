"""What a trained file says about itself."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora import __version__
from lib_lora.files.metadata import TrainingRecord
from lib_lora.ports import DiffusionModel
from lib_lora.train.captions import Dataset
from lib_lora.train.config import JobConfig
from lib_lora.train.sidecar import triggers

if TYPE_CHECKING:
    from lib_lora.train.session import Session

OPTIMIZER_NAMES = {"adamw": "AdamW", "adamw8bit": "AdamW8bit", "sgd": "SGD", "schedulefree": "AdamWScheduleFree"}
EPOCH = "SOURCE_DATE_EPOCH"  # https://reproducible-builds.org/specs/source-date-epoch
LEGACY = slice(0x100000, 0x110000)  # what the webui's old hash of a checkpoint is taken of
# kohya's own module makes LoRA; all other types are LyCORIS' to readers of the metadata.
KOHYA = ("lora", "locon", "dylora")


def prediction_of(job: JobConfig, model: DiffusionModel) -> str:
    """ "epsilon" or "v_prediction": what the job says, or else the model."""
    return model.prediction_type if job.base.prediction == "auto" else job.base.prediction


def record_of(session: Session, step: int) -> TrainingRecord:
    """The record of what is trained, after `step` steps."""
    job, model, dataset = session.job, session.model, session.dataset
    network, optimizer, training, data = job.network, job.optimizer, job.training, job.data
    prior = sum(item.prior for item in dataset.items)
    epoch = session.plan.epoch(step)
    legacy, whole = session.base_hashes()
    return TrainingRecord(
        output_name=job.output.name,
        rank=network.rank,
        alpha=network.alpha,
        base_version=model.version,
        v_prediction=prediction_of(job, model) == "v_prediction",
        network_module="networks.lora" if network.type in KOHYA else "lycoris.kohya",
        network_args=_network_args(job),
        sd_model_name=Path(job.base.checkpoint).name or model.name,
        sd_model_hash=legacy,
        new_sd_model_hash=whole,
        clip_skip=training.clip_skip or getattr(model, "clip_skip", 1),
        seed=training.seed,
        steps=step,
        max_train_steps=0 if training.epochs else training.steps,
        epoch=min(epoch, training.epochs or epoch),
        num_epochs=training.epochs or 0,
        learning_rate=optimizer.lr,
        unet_lr=optimizer.lr if network.train_unet else None,
        text_encoder_lr=optimizer.te_lr if network.train_text_encoder else None,
        lr_scheduler=optimizer.schedule,
        lr_warmup_steps=optimizer.warmup_steps,
        optimizer=OPTIMIZER_NAMES.get(optimizer.name, optimizer.path or optimizer.name),
        batch_size_per_device=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        gradient_checkpointing=training.checkpointing,
        min_snr_gamma=training.min_snr_gamma if training.weighting == "min_snr" and training.min_snr_gamma else None,
        noise_offset=training.offset_noise or None,
        resolution=(data.resolution, data.resolution),
        num_train_images=len(dataset.visits()),
        num_reg_images=prior,
        bucket_info=dataset.bucket_info(),
        dataset_dirs=_folders(dataset),
        tag_frequency=tag_frequency(dataset),
        training_started_at=moment(session.started_at),
        training_finished_at=moment(time.time()),
        training_comment=f"trained with sd-webui-lorakit {__version__}",
        trigger_phrase=", ".join(triggers(session)),
    )


def moment(now: float) -> float:
    """`now`, or the time that SOURCE_DATE_EPOCH gives in its place, so that equal runs can make equal files."""
    given = os.environ.get(EPOCH, "")
    return float(given) if given.isdigit() else now


def checkpoint_hashes(path: Path) -> tuple[str, str]:
    """The webui's two hashes of a checkpoint file: the old one, 8 digits, and sha256."""
    with path.open("rb") as file:
        whole = hashlib.sha256()
        while block := file.read(1 << 24):
            whole.update(block)
        file.seek(LEGACY.start)
        legacy = hashlib.sha256(file.read(LEGACY.stop - LEGACY.start)).hexdigest()[:8]
    return legacy, whole.hexdigest()


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


def _network_args(job: JobConfig) -> dict[str, object]:
    """The network's settings by the names kohya's and LyCORIS' trainers give them."""
    network = job.network
    args: dict[str, Any] = {} if network.type in KOHYA else {"algo": network.type}
    if network.type != "lora":
        args |= {"conv_dim": network.conv_rank, "conv_alpha": network.conv_alpha}
    switches = {
        "dora_wd": network.dora,
        "rs_lora": network.rslora,
        "use_tucker": network.tucker,
        "full_matrix": network.full_matrix,
        "decompose_both": network.decompose_both,
        "rescaled": network.rescale,
        "train_norm": network.train_norms,
    }
    args |= {name: True for name, on in switches.items() if on}
    if network.type == "lokr":
        args["factor"] = network.factor
    if network.type == "dylora":
        args["unit"] = network.unit
    if network.type in ("oft", "boft"):
        args["constraint"] = network.constraint
    for name in ("dropout", "rank_dropout", "module_dropout"):
        if getattr(network, name):
            args[name] = getattr(network, name)
    if job.optimizer.lora_plus != 1:
        args["loraplus_lr_ratio"] = job.optimizer.lora_plus
    return args
