"""A training job: its settings by section, each declared once, read from and written to TOML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib_lora.errors import BadConfig
from lib_lora.train.settings import Setting, setting, settings_of
from lib_lora.train.toml import dump_toml, read_toml


@dataclass(frozen=True)
class Base:
    """The base model that is trained against."""

    checkpoint: str = setting("", "Checkpoint file; empty: the loaded model, or the miniature that comes with us")
    prediction: str = setting(
        "auto", "What the model predicts; auto: what it says itself", choices=("auto", "epsilon", "v_prediction")
    )


@dataclass(frozen=True)
class Data:
    """The pictures and their captions."""

    folder: str = setting("", "Folder of pictures, or of folders named 'N_trigger class' (N = repeats)")
    trigger: str = setting("", "Rare word that will call the concept, e.g. sks")
    class_word: str = setting("", "What the concept is one of, e.g. dog; empty for a style")
    captions: str = setting(
        "auto",
        "Where captions come from; auto: .txt beside the picture, metadata.jsonl, trigger and class, file name",
        choices=("auto", "txt", "metadata", "filename", "trigger"),
    )
    template: str = setting("{trigger} {class}", "Caption made of trigger and class")
    resolution: int = setting(512, "Side of the square training pictures in pixels", low=64, high=2048, multiple=64)
    repeats: int = setting(1, "Visits of each picture per epoch", low=1, high=10000)
    crop: str = setting(
        "center", "Where the square is cut from; random encodes every visit anew", choices=("center", "random")
    )
    flip: bool = setting(False, "Mirror half of the visits; leave off for anything with a left and a right")


@dataclass(frozen=True)
class NetworkSection:
    """The network that is trained."""

    type: str = setting("lora", "lora: attention and feed-forward; locon: convolutions too", choices=("lora", "locon"))
    rank: int = setting(16, "Rank of the layers", low=1, high=1024)
    alpha: float = setting(8.0, "Alpha; the delta is scaled by alpha / rank", low=0.001, high=4096)
    conv_rank: int = setting(8, "Rank of 3x3 convolutions (locon)", low=1, high=1024)
    conv_alpha: float = setting(4.0, "Alpha of 3x3 convolutions (locon)", low=0.001, high=4096)
    train_unet: bool = setting(True, "Train the UNet")
    train_text_encoder: bool = setting(False, "Train the text encoder")


@dataclass(frozen=True)
class OptimizerSection:
    """How the factors are updated."""

    name: str = setting("adamw", "adamw8bit needs bitsandbytes", choices=("adamw", "adamw8bit"))
    lr: float = setting(1e-4, "Learning rate of the UNet's layers", low=0.0, high=10.0)
    te_lr: float = setting(1e-5, "Learning rate of the text encoder's layers", low=0.0, high=10.0)
    weight_decay: float = setting(0.01, "Decoupled weight decay", low=0.0, high=1.0)
    beta1: float = setting(0.9, "Decay of the mean of gradients", low=0.0, high=0.9999)
    beta2: float = setting(0.999, "Decay of the mean of squared gradients", low=0.0, high=0.99999)
    schedule: str = setting("constant", "Learning rate over the run", choices=("constant", "cosine"))
    warmup_steps: int = setting(0, "Steps over which the learning rate rises", low=0, high=1000000)


@dataclass(frozen=True)
class Training:
    """The loop and the objective."""

    steps: int = setting(1000, "Optimizer steps", low=1, high=10000000)
    epochs: int | None = setting(
        None, "Passes over the pictures; if given, it decides instead of steps", low=1, high=1000000
    )
    batch_size: int = setting(1, "Pictures per forward pass", low=1, high=1024)
    accumulation: int = setting(1, "Forward passes per optimizer step", low=1, high=1024)
    checkpointing: bool = setting(False, "Recompute activations in the backward pass: less memory, a third slower")
    clip: float = setting(1.0, "Largest norm of the gradient; 0: no limit", low=0.0, high=1000.0)
    min_snr_gamma: float = setting(5.0, "Min-SNR weighting; 0: every timestep weighs the same", low=0.0, high=100.0)
    offset_noise: float = setting(0.0, "Strength of noise that shifts a whole channel", low=0.0, high=1.0)
    seed: int = setting(0, "Equal seeds give equal files on one machine", low=0, high=2**53)


@dataclass(frozen=True)
class Output:
    """What is written, and when."""

    folder: str = setting("runs", "Folder in which the run's folder is made")
    name: str = setting("network", "Name of the network; its tag will be <lora:name:1>")
    network_folder: str = setting("", "Folder the finished network is copied to; empty: it stays in the run's folder")
    dtype: str = setting("fp16", "Number format of the file", choices=("fp32", "fp16", "bf16"))
    save_every: int = setting(0, "Keep the network every so many steps; 0: only at the end", low=0, high=10000000)
    state_every: int = setting(
        100, "Save what resuming needs every so many steps; 0: at stops only", low=0, high=10000000
    )
    sample_every: int = setting(0, "Draw the sample prompts every so many steps; 0: never", low=0, high=10000000)
    sample_prompts: tuple[str, ...] = setting((), "Prompts of the sample pictures; empty: the first caption")
    sample_seed: int = setting(1, "Seed of the sample pictures", low=0, high=2**53)
    sample_steps: int = setting(20, "Sampler steps of the sample pictures", low=1, high=1000)
    sample_cfg: float = setting(7.0, "Guidance of the sample pictures", low=1.0, high=50.0)


SECTIONS: Mapping[str, type] = {
    "base": Base,
    "data": Data,
    "network": NetworkSection,
    "optimizer": OptimizerSection,
    "training": Training,
    "output": Output,
}


@dataclass(frozen=True)
class JobConfig:
    """One training job."""

    base: Base = field(default_factory=Base)
    data: Data = field(default_factory=Data)
    network: NetworkSection = field(default_factory=NetworkSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    training: Training = field(default_factory=Training)
    output: Output = field(default_factory=Output)

    def get(self, key: str) -> Any:
        """The value of `section.name`."""
        item = find(key)
        return getattr(getattr(self, item.section), item.name)

    def values(self) -> dict[str, dict[str, Any]]:
        """Every value by section and name."""
        return {name: dataclasses.asdict(getattr(self, name)) for name in SECTIONS}


def fields() -> Iterator[Setting]:
    """Every setting of a job, section by section."""
    for name, cls in SECTIONS.items():
        yield from settings_of(name, cls)


def find(key: str) -> Setting:
    """The setting called `section.name`, or `name` alone where only one section has it. Raises BadConfig."""
    known = [item for item in fields() if key in (item.key, item.name)]
    if len(known) == 1:
        return known[0]
    if known:
        raise BadConfig(f"setting {key!r} is in several sections; write one of {', '.join(i.key for i in known)}")
    section = key.rpartition(".")[0]
    options = sorted(i.key for i in fields() if not section or i.section == section) or list(SECTIONS)
    raise BadConfig(f"setting {key!r} is unknown; known are {', '.join(options)}")


def make_job(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> JobConfig:
    """A checked job from `{"section.name": value}`, with `key=value` texts laid over. Raises BadConfig."""
    chosen: dict[str, Any] = {item.key: item.default for item in fields()}
    for key, value in values.items():
        item = find(key)
        chosen[item.key] = item.check(value)
    for text in overrides:
        key, equals, value_text = text.partition("=")
        if not equals:
            raise BadConfig(f"override {text!r} has no '='; write section.name=value")
        item = find(key.strip())
        chosen[item.key] = item.parse(value_text.strip())
    parts = {
        name: cls(**{item.name: chosen[item.key] for item in settings_of(name, cls)}) for name, cls in SECTIONS.items()
    }
    return _consistent(JobConfig(**parts))


def load_job(path: Path | str, overrides: Sequence[str] = ()) -> JobConfig:
    """The job of a TOML file, `key=value` overrides laid over. Raises BadConfig naming section.field."""
    values: dict[str, Any] = {}
    for section, table in read_toml(Path(path)).items():
        if section not in SECTIONS or not isinstance(table, Mapping):
            raise BadConfig(f"[{section}] in {str(path)!r} is unknown; sections are {', '.join(SECTIONS)}")
        values |= {f"{section}.{name}": value for name, value in table.items()}
    return make_job(values, overrides)


def dump_job(job: JobConfig) -> str:
    """The job as TOML that `load_job` reads back to an equal job."""
    return dump_toml(job.values())


def _consistent(job: JobConfig) -> JobConfig:
    if not (job.network.train_unet or job.network.train_text_encoder):
        raise BadConfig(
            "network.train_unet = False and network.train_text_encoder = False leave nothing to train; set one to true"
        )
    name = job.output.name
    if not name.strip() or any(sign in '/\\:*?"<>|' or sign < " " for sign in name) or name.strip(". ") != name:
        raise BadConfig(f'output.name = {name!r} is not accepted; give a file name without / \\ : * ? " < > |')
    return job
