"""What is learned from, how the loop goes and what is written: the sections data, concept, prior, training, output."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora.train.settings import setting

CAPTIONS = ("auto", "txt", "metadata", "filename", "trigger")


@dataclass(frozen=True)
class Data:
    """The pictures and their captions."""

    folder: str = setting("", "Folder of pictures, or of folders named 'N_trigger class' (N = repeats)")
    trigger: str = setting("", "Rare word that will call the concept, e.g. sks")
    class_word: str = setting("", "What the concept is one of, e.g. dog; empty for a style")
    captions: str = setting(
        "auto",
        "Where captions come from; auto: .txt beside the picture, metadata.jsonl, trigger and class, file name",
        choices=CAPTIONS,
    )
    template: str = setting("{trigger} {class}", "Caption made of trigger and class; [filewords] is the caption found")
    resolution: int = setting(
        512,
        "Side of the training pictures in pixels; with buckets, of the square of equal area",
        low=64,
        high=2048,
        multiple=64,
    )
    repeats: int = setting(1, "Visits of each picture per epoch", low=1, high=10000)
    buckets: bool = setting(False, "Keep each picture's shape: pictures of like shape make up a batch")
    bucket_step: int = setting(64, "Sides of buckets are multiples of this many pixels", low=8, high=512, multiple=8)
    bucket_low: int = setting(256, "Shortest side of a bucket in pixels", low=64, high=4096, multiple=8)
    bucket_high: int = setting(1024, "Longest side of a bucket in pixels", low=64, high=4096, multiple=8)
    upscale: bool = setting(True, "Enlarge pictures smaller than their bucket; off: they get a smaller bucket")
    crop: str = setting(
        "center", "Where a picture is cut; random encodes every visit anew", choices=("center", "random")
    )
    flip: bool = setting(False, "Mirror half of the visits; leave off for anything with a left and a right")
    colour: float = setting(
        0.0, "How far brightness, contrast and hue may stray at each visit; encodes every visit anew", low=0.0, high=1.0
    )
    prepend_trigger: bool = setting(False, "Begin every caption with the trigger, unless it says it already")
    separator: str = setting(",", "What separates the tags of a caption")
    shuffle: bool = setting(False, "Shuffle the tags of a caption at each visit")
    keep_tags: int = setting(0, "Tags at the beginning that are neither shuffled nor dropped", low=0, high=1000)
    keep_tags_separator: str = setting(
        "", "Tags before this text, and after a second one, stay in place instead of the first ones, e.g. |||"
    )
    secondary_separator: str = setting("", "Tags with this between them are shuffled and dropped as one, e.g. ;;;")
    wildcards: bool = setting(False, "Of {a|b|c} in a caption one is drawn at each visit; {{ and }} are braces")
    caption_dropout: float = setting(0.0, "Share of visits without a caption", low=0.0, high=1.0)
    tag_dropout: float = setting(0.0, "Chance of each tag to be left out at a visit", low=0.0, high=1.0)
    delete_tags: tuple[str, ...] = setting((), "Tags taken out of every caption, e.g. those the trigger shall absorb")
    weights: bool = setting(False, "Read (word:1.2) in captions as emphasis")
    masks: str = setting(
        "none",
        "What the loss looks at; alpha: opaque parts; folder: white parts of a picture of the same name",
        choices=("none", "alpha", "folder"),
    )
    mask_folder: str = setting("", "Folder of masks")
    mask_floor: float = setting(0.0, "Weight of what is masked out", low=0.0, high=1.0)
    cache: str = setting(
        "ram", "Where latents are kept; none encodes every visit anew", choices=("ram", "disk", "none")
    )
    cache_folder: str = setting("", "Folder of latents kept on disk; empty: the run's own")


@dataclass(frozen=True)
class Concept:
    """One of several concepts trained in one run; what is left empty is taken from the sections data and prior."""

    folder: str = setting("", "Folder of the concept's pictures")
    trigger: str = setting("", "Rare word that will call the concept")
    class_word: str = setting("", "What the concept is one of")
    template: str = setting("", "Caption made of trigger and class; empty: data.template")
    repeats: int = setting(1, "Visits of each picture per epoch", low=1, high=10000)
    class_folder: str = setting("", "Folder of class pictures; empty: made by the model, where prior is on")
    class_prompt: str = setting("", "Prompt of class pictures; empty: the class word")
    sample_prompt: str = setting("", "Prompt of the concept's sample pictures")


@dataclass(frozen=True)
class Prior:
    """Prior preservation: pictures of the class, by which the model remembers what it knew."""

    weight: float = setting(0.0, "Weight of class pictures in the loss; 0: no prior preservation", low=0.0, high=100.0)
    folder: str = setting("", "Folder of class pictures; what lacks is drawn into it; empty: class-images in output")
    prompt: str = setting("", "Prompt of class pictures; empty: the class word")
    negative: str = setting("", "Negative prompt of class pictures")
    images: int = setting(100, "Class pictures there shall be", low=1, high=100000)
    draw_steps: int = setting(30, "Sampler steps of class pictures", low=1, high=1000)
    draw_cfg: float = setting(7.5, "Guidance of class pictures", low=1.0, high=50.0)
    draw_batch: int = setting(4, "Class pictures drawn at once", low=1, high=256)
    draw_seed: int = setting(0, "Seed of class pictures", low=0, high=2**53)


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
    loss: str = setting("mse", "Distance to the target", choices=("mse", "l1", "smooth_l1", "huber"))
    huber_delta: float = setting(0.1, "Where huber and smooth_l1 turn from square to straight", low=1e-6, high=100.0)
    huber_schedule: str = setting(
        "constant", "How that place depends on the timestep", choices=("constant", "exponential", "snr")
    )
    weighting: str = setting(
        "min_snr", "How much each timestep weighs", choices=("none", "min_snr", "soft_min_snr", "debiased", "p2")
    )
    min_snr_gamma: float = setting(5.0, "Min-SNR's gamma; 0: every timestep weighs the same", low=0.0, high=100.0)
    scale_v_pred: bool = setting(False, "v-prediction: weigh timesteps as an eps loss would")
    v_pred_like: float = setting(0.0, "Share of a v-prediction-like weighting added to an eps loss", low=0.0, high=100)
    offset_noise: float = setting(0.0, "Strength of noise that shifts a whole channel", low=0.0, high=1.0)
    offset_adaptive: float = setting(0.0, "How much offset noise grows with a picture's own mean", low=0.0, high=1.0)
    multires_levels: int = setting(0, "Levels of multi-resolution (pyramid) noise; 0: off", low=0, high=16)
    multires_discount: float = setting(0.8, "Strength of each further level", low=0.0, high=1.0)
    input_perturbation: float = setting(0.0, "Further noise on the noisy picture only", low=0.0, high=1.0)
    timestep_low: int = setting(0, "Least timestep", low=0, high=999)
    timestep_high: int = setting(999, "Largest timestep", low=0, high=999)
    timestep_sampling: str = setting(
        "uniform", "How timesteps are drawn", choices=("uniform", "logit_normal", "early", "late")
    )
    zero_terminal_snr: bool = setting(False, "Rescale the noise schedule to end in pure noise (v-prediction models)")
    clip_skip: int = setting(
        0, "Which of the text encoder's last layers is read; 0: as the model wants", low=0, high=12
    )
    max_tokens: int = setting(75, "Tokens of a caption that are read; more are cut", low=75, high=225, multiple=75)
    te_fraction: float = setting(1.0, "Share of the run in which the text encoders are trained", low=0.0, high=1.0)
    freeze_norms: bool = setting(True, "Full fine-tune: leave the text encoder's layer norms alone")
    loss_scaling: bool = setting(True, "fp16 base on a GPU: scale the loss so that small gradients are not lost")
    deterministic: bool = setting(True, "Equal seeds give equal files on one machine, at some cost in speed")
    seed: int = setting(0, "Seed of everything random", low=0, high=2**53)


@dataclass(frozen=True)
class Output:
    """What is written, and when."""

    folder: str = setting("runs", "Folder in which the run's folder is made")
    name: str = setting("network", "Name of the network; its tag will be <lora:name:1>")
    network_folder: str = setting("", "Folder the finished network is copied to; empty: it stays in the run's folder")
    embedding_folder: str = setting(
        "", "Folder finished embeddings are copied to; empty: they stay in the run's folder"
    )
    hypernetwork_folder: str = setting("", "Folder a finished hypernetwork is copied to; empty: it stays")
    checkpoint_folder: str = setting("", "Folder a finished checkpoint is copied to; empty: it stays")
    dtype: str = setting("fp16", "Number format of the file", choices=("fp32", "fp16", "bf16"))
    sidecar: bool = setting(True, "Write the card's facts (.json) and picture (.png) beside the finished network")
    save_every: int = setting(0, "Keep the network every so many steps; 0: only at the end", low=0, high=10000000)
    keep_last: int = setting(0, "Networks kept on the way, older ones are removed; 0: all", low=0, high=100000)
    state_every: int = setting(
        100, "Save what resuming needs every so many steps; 0: at stops only", low=0, high=10000000
    )
    sample_every: int = setting(0, "Draw the sample prompts every so many steps; 0: never", low=0, high=10000000)
    sample_prompts: tuple[str, ...] = setting((), "Prompts of the sample pictures; empty: the first caption")
    sample_negative: str = setting("", "Negative prompt of the sample pictures")
    sample_seed: int = setting(1, "Seed of the sample pictures", low=0, high=2**53)
    sample_steps: int = setting(20, "Sampler steps of the sample pictures", low=1, high=1000)
    sample_cfg: float = setting(7.0, "Guidance of the sample pictures", low=1.0, high=50.0)
