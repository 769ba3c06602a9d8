"""What a trained file says about itself."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora import __version__
from lib_lora.files.metadata import CHECKPOINT, TrainingRecord
from lib_lora.keys.layer_key import UNET
from lib_lora.ports import DiffusionModel
from lib_lora.train.captions import Dataset
from lib_lora.train.concepts import subjects_of
from lib_lora.train.config import JobConfig
from lib_lora.train.sections import NetworkSection
from lib_lora.train.sidecar import description, triggers

if TYPE_CHECKING:
    from lib_lora.train.session import Session

OPTIMIZER_NAMES = {
    "adamw": "AdamW",
    "adamw8bit": "AdamW8bit",
    "paged_adamw8bit": "PagedAdamW8bit",
    "lion": "Lion",
    "lion8bit": "Lion8bit",
    "paged_lion8bit": "PagedLion8bit",
    "adafactor": "Adafactor",
    "prodigy": "Prodigy",
    "schedulefree": "AdamWScheduleFree",
    "sgd": "SGD",
}
PRECISIONS = {"float16": "fp16", "bfloat16": "bf16"}
EPOCH = "SOURCE_DATE_EPOCH"  # https://reproducible-builds.org/specs/source-date-epoch
LEGACY = slice(0x100000, 0x110000)  # what the webui's old hash of a checkpoint is taken of
# kohya's own module makes LoRA; all other types are LyCORIS' to readers of the metadata.
KOHYA = ("lora", "locon", "dylora")


def prediction_of(job: JobConfig, model: DiffusionModel) -> str:
    """ "epsilon" or "v_prediction": what the job says, or else the model."""
    return model.prediction_type if job.base.prediction == "auto" else job.base.prediction


def record_of(session: Session, step: int, adapter: str = CHECKPOINT) -> TrainingRecord:
    """The record of what is trained, after `step` steps. `adapter`: the kind of file, as in `files.metadata`."""
    job, model, network = session.job, session.model, network_section(session)
    legacy, whole = session.base_hashes()
    return TrainingRecord(
        output_name=job.output.name,
        rank=network.rank,
        alpha=network.alpha,
        base_version=model.version,
        v_prediction=prediction_of(job, model) == "v_prediction",
        network_module="networks.lora" if network.type in KOHYA else "lycoris.kohya",
        network_args=_network_args(job, network),
        sd_model_name=_base_name(session),
        sd_model_hash=legacy,
        new_sd_model_hash=whole,
        mixed_precision=PRECISIONS.get(str(next(model.roots()[UNET].parameters()).dtype).partition(".")[2], "no"),
        training_started_at=moment(session.started_at),
        training_finished_at=moment(time.time()),
        training_comment=f"trained with sd-webui-lorakit {__version__}",
        trigger_phrase=", ".join(triggers(session)),
        description=description(session),
        tags=", ".join(_tags(session)),
        implementation_version=f"sd-webui-lorakit/{__version__}",
        adapter=adapter,
        settings=_settings(job),
        **_course(session, step, network),
        **_seen(session),
    )


def _course(session: Session, step: int, network: NetworkSection) -> dict[str, Any]:
    """How far it went, and how."""
    optimizer, training = session.job.optimizer, session.job.training
    last = training.epochs or session.plan.epoch(session.plan.steps)
    return {
        "clip_skip": training.clip_skip or getattr(session.model, "clip_skip", 1),
        "seed": training.seed,
        "steps": step,
        "max_train_steps": session.plan.steps,
        "epoch": min(session.plan.epoch(step), last),
        "num_epochs": last,
        "learning_rate": optimizer.lr,
        "unet_lr": optimizer.lr if network.train_unet else None,
        "text_encoder_lr": optimizer.te_lr if network.train_text_encoder or network.train_text_encoder_2 else None,
        "lr_scheduler": optimizer.schedule,
        "lr_warmup_steps": optimizer.warmup_steps,
        "optimizer": _optimizer(session.job),
        "batch_size_per_device": training.batch_size,
        "gradient_accumulation_steps": training.accumulation,
        "gradient_checkpointing": training.checkpointing,
        "min_snr_gamma": (training.min_snr_gamma or None) if training.weighting == "min_snr" else None,
        "noise_offset": training.offset_noise or None,
        "timestep_range": (training.timestep_low, training.timestep_high),
    }


def _seen(session: Session) -> dict[str, Any]:
    """What it was trained on."""
    dataset, side = session.dataset, session.job.data.resolution
    return {
        "resolution": (side, side),
        "num_train_images": len(dataset.visits()),
        "num_reg_images": sum(item.prior for item in dataset.items),
        "bucket_info": dataset.bucket_info(),
        "dataset_dirs": _folders(dataset, prior=False),
        "reg_dataset_dirs": _folders(dataset, prior=True),
        "tag_frequency": tag_frequency(dataset),
    }


def network_section(session: Session) -> NetworkSection:
    """The network's settings as the method has them: some methods train a network of a fixed kind."""
    own: Callable[[JobConfig], NetworkSection] | None = getattr(session.method, "section", None)
    return own(session.job) if own is not None else session.job.network


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
    """{"folder": {"tag": how often}} of the captions' comma-separated tags, as the webui's card shows them.

    Class pictures' are left out: the card proposes these tags as the network's own.
    """
    counts: dict[str, Counter[str]] = {}
    for item in dataset.items:
        if not item.prior:
            tags = [tag.strip() for tag in item.caption.split(",") if tag.strip()]
            counts.setdefault(item.path.parent.name, Counter()).update(tags)
    return {folder: dict(sorted(counter.items())) for folder, counter in sorted(counts.items())}


def _folders(dataset: Dataset, prior: bool) -> dict[str, dict[str, int]]:
    """Class pictures apart from the others: the card adds these numbers up as the size of what was learned."""
    folders: dict[str, dict[str, int]] = {}
    for item in dataset.items:
        if item.prior == prior:
            about = folders.setdefault(item.path.parent.name, {"n_repeats": item.repeats, "img_count": 0})
            about["img_count"] += 1
    return folders


def _base_name(session: Session) -> str:
    """The base's file, or whatever else it is known by."""
    source = session.model.source
    return (source.name if source is not None else Path(session.job.base.checkpoint).name) or session.model.name


def _optimizer(job: JobConfig) -> str:
    """As kohya writes it: the class, and further arguments in brackets."""
    name = OPTIMIZER_NAMES.get(job.optimizer.name, job.optimizer.path or job.optimizer.name)
    return f"{name}({','.join(job.optimizer.args)})" if job.optimizer.args else name


def _tags(session: Session) -> list[str]:
    """What sorts the file among others: its classes, how it was trained, its type."""
    classes = [subject.data.class_word.strip() for subject in subjects_of(session.job)]
    method = session.job.method.name.replace("_", " ")
    return [tag for tag in dict.fromkeys([*classes, method, network_section(session).type]) if tag]


def _settings(job: JobConfig) -> dict[str, object]:
    """Further settings by kohya's names; what is off is left out where kohya writes None."""
    data, training, network = job.data, job.training, job.network
    return {
        "total_batch_size": training.batch_size * training.accumulation,
        "max_token_length": training.max_tokens if training.max_tokens > 75 else None,
        "max_grad_norm": training.clip,
        "loss_type": training.loss,
        "huber_schedule": training.huber_schedule if training.loss in ("huber", "smooth_l1") else None,
        "huber_c": training.huber_delta if training.loss in ("huber", "smooth_l1") else None,
        "debiased_estimation": training.weighting == "debiased",
        "zero_terminal_snr": training.zero_terminal_snr,
        "adaptive_noise_scale": training.offset_adaptive or None,
        "multires_noise_iterations": training.multires_levels or None,
        "multires_noise_discount": training.multires_discount if training.multires_levels else None,
        "ip_noise_gamma": training.input_perturbation or None,
        "scale_weight_norms": network.scale_weight_norms or None,
        "network_dropout": network.dropout or None,
        "prior_loss_weight": job.prior.weight,
        "cache_latents": data.cache != "none",
        "enable_bucket": data.buckets,
        "bucket_no_upscale": not data.upscale,
        "min_bucket_reso": data.bucket_low if data.buckets else None,
        "max_bucket_reso": data.bucket_high if data.buckets else None,
        "flip_aug": data.flip,
        "color_aug": bool(data.colour),
        "random_crop": data.crop == "random",
        "shuffle_caption": data.shuffle,
        "keep_tokens": data.keep_tags,
        "keep_tokens_separator": data.keep_tags_separator or None,
        "secondary_separator": data.secondary_separator or None,
        "enable_wildcard": data.wildcards,
        "caption_dropout_rate": data.caption_dropout,
        "caption_tag_dropout_rate": data.tag_dropout,
    }


def _network_args(job: JobConfig, network: NetworkSection) -> dict[str, object]:
    """The network's settings by the names kohya's and LyCORIS' trainers give them."""
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
