"""What is trained and how: the sections base, method, network and optimizer of a job, each setting declared once."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora.train.settings import setting

METHODS = (
    "network",
    "dreambooth",
    "textual_inversion",
    "pivotal_tuning",
    "custom_diffusion",
    "hypernetwork",
    "lcm",
    "slider",
    "image_slider",
)
TYPES = ("lora", "locon", "loha", "lokr", "ia3", "glora", "full", "norm", "dylora", "oft", "boft")
OPTIMIZERS = (
    *("adamw", "adamw8bit", "paged_adamw8bit", "lion", "lion8bit", "paged_lion8bit", "adafactor", "prodigy"),
    *("schedulefree", "sgd", "custom"),
)
SCHEDULES = ("constant", "linear", "cosine", "cosine_restarts", "polynomial", "rex")


@dataclass(frozen=True)
class Base:
    """The base model that is trained against."""

    checkpoint: str = setting(
        "", "Checkpoint file or diffusers folder; empty: the loaded model, or the miniature that comes with us"
    )
    prediction: str = setting(
        "auto", "What the model predicts; auto: what it says itself", choices=("auto", "epsilon", "v_prediction")
    )
    use_ema: bool = setting(False, "Take the averaged (EMA) weights that some checkpoints also hold")
    dtype: str = setting(
        "auto",
        "Number format of the frozen base; auto: fp32 on a CPU, else as the file has it",
        choices=("auto", "fp32", "fp16", "bf16"),
    )
    attention: str = setting(
        "auto",
        "How attention is computed; auto: the fastest that a trial forward and backward pass shows to work",
        choices=("auto", "sdpa", "xformers", "plain"),
    )
    download: bool = setting(False, "If checkpoint is no file but owner/name, download it from the model hub")


@dataclass(frozen=True)
class Method:
    """What kind of training this is, and what only some kinds need."""

    name: str = setting("network", "What is trained", choices=METHODS)
    tokens: int = setting(4, "Vectors of a new word (textual inversion, pivotal tuning)", low=1, high=75)
    initial_word: str = setting("", "Word whose meaning a new word begins with; empty: the class word")
    token_lr: float = setting(5e-4, "Learning rate of new words", low=0.0, high=10.0)
    embedding_format: str = setting(
        "safetensors", "Format of embedding files; pt is the webui's older one", choices=("safetensors", "pt")
    )
    bundle: bool = setting(True, "Put new words into the network's file as well; else only into files of their own")
    as_lora: int = setting(
        0, "Rank of a LoRA extracted from a full fine-tune beside the checkpoint; 0: none", low=0, high=1024
    )
    save_checkpoint: bool = setting(True, "Write a full fine-tune as a whole checkpoint")
    hyper_layers: str = setting("1, 2, 1", "Widths of a hypernetwork's layers, as multiples of the text states'")
    hyper_activation: str = setting(
        "linear",
        "Activation between a hypernetwork's layers",
        choices=("linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid"),
    )
    hyper_norm: bool = setting(False, "Layer norms between a hypernetwork's layers")
    hyper_dropout: float = setting(0.0, "Share of a hypernetwork's values dropped in training", low=0.0, high=0.9)
    lcm_steps: int = setting(50, "Steps of the teacher's sampler (LCM distillation)", low=2, high=1000)
    lcm_cfg_low: float = setting(3.0, "Least guidance of the teacher (LCM distillation)", low=1.0, high=50.0)
    lcm_cfg_high: float = setting(15.0, "Largest guidance of the teacher (LCM distillation)", low=1.0, high=50.0)
    slider_target: str = setting("", "What a slider changes, e.g. person; empty: anything")
    slider_positive: str = setting("", "What strength 1 brings, e.g. old person")
    slider_negative: str = setting("", "What strength -1 brings, e.g. young person")
    slider_guidance: float = setting(3.0, "How far a slider goes along its direction", low=0.0, high=50.0)
    slider_steps: int = setting(20, "Steps of the sampler that draws what a slider is trained on", low=1, high=1000)
    slider_preserve: tuple[str, ...] = setting((), "Words a slider must not change, each drawn beside its target")
    pairs_after: str = setting(
        "", "Folder of the 'after' pictures of an image slider, named like those 'before' in data.folder"
    )


@dataclass(frozen=True)
class NetworkSection:
    """The network that is trained."""

    type: str = setting(
        "lora", "Network type; locon is LoRA on convolutions too, norm trains norms only", choices=TYPES
    )
    rank: int = setting(16, "Rank of the layers; block size for oft and boft", low=1, high=1024)
    alpha: float = setting(8.0, "Alpha; the delta is scaled by alpha / rank", low=0.001, high=4096)
    conv_rank: int = setting(8, "Rank of 3x3 convolutions (where they are trained)", low=1, high=1024)
    conv_alpha: float = setting(4.0, "Alpha of 3x3 convolutions (where they are trained)", low=0.001, high=4096)
    train_unet: bool = setting(True, "Train the UNet")
    train_text_encoder: bool = setting(False, "Train the text encoder")
    train_text_encoder_2: bool = setting(False, "Train SDXL's second text encoder")
    targets: str = setting(
        "auto",
        "Layers that are trained; auto: what is usual for the type",
        choices=("auto", "attention", "cross_attention", "cross_attention_kv", "attention_conv", "all"),
    )
    include: tuple[str, ...] = setting((), "Patterns (regular expressions) of further layers' names to train")
    exclude: tuple[str, ...] = setting((), "Patterns (regular expressions) of layers' names not to train")
    ranks: tuple[str, ...] = setting((), "Ranks by pattern: 'pattern=rank' or 'pattern=rank:alpha', first match wins")
    dora: bool = setting(False, "DoRA: train each layer's magnitude separately")
    dora_axis: str = setting(
        "columns", "Whose magnitudes DoRA trains; columns are applied right everywhere", choices=("columns", "rows")
    )
    rslora: bool = setting(False, "Scale by alpha / sqrt(rank) (rsLoRA)")
    tucker: bool = setting(False, "Tucker form for 3x3 convolutions")
    factor: int = setting(-1, "LoKr's factor; -1: the most even split", low=-1, high=1024)
    full_matrix: bool = setting(False, "LoKr: never split the second factor")
    decompose_both: bool = setting(False, "LoKr: split both factors")
    constraint: float = setting(0.0, "OFT and BOFT: farthest the rotation may go; 0: no limit", low=0.0, high=1.0)
    rescale: bool = setting(False, "OFT and BOFT: train a scale of each output too")
    train_norms: bool = setting(False, "Train norms and their biases as well")
    train_bias: bool = setting(False, "Train the biases of trained layers as well (full)")
    unit: int = setting(4, "DyLoRA: ranks trained together", low=1, high=1024)
    dropout: float = setting(0.0, "Share of a layer's inputs dropped in training", low=0.0, high=0.95)
    rank_dropout: float = setting(0.0, "Share of ranks dropped in training", low=0.0, high=0.95)
    module_dropout: float = setting(0.0, "Share of layers dropped in training", low=0.0, high=0.95)
    scale_weight_norms: float = setting(
        0.0, "Largest norm of a layer's delta, kept by scaling it down; 0: no limit", low=0.0, high=1000.0
    )
    continue_from: str = setting("", "Network file whose layers training begins with; empty: new layers")


@dataclass(frozen=True)
class OptimizerSection:
    """How what is trained is updated."""

    name: str = setting("adamw", "Optimizer; those with 8bit need bitsandbytes", choices=OPTIMIZERS)
    path: str = setting("", "Import path of the class for name = custom, e.g. torch.optim.NAdam")
    args: tuple[str, ...] = setting((), "Further arguments of the optimizer, each as name=value")
    lr: float = setting(1e-4, "Learning rate of the UNet's layers", low=0.0, high=10.0)
    te_lr: float = setting(1e-5, "Learning rate of the text encoder's layers", low=0.0, high=10.0)
    te2_lr: float | None = setting(
        None, "Learning rate of SDXL's second text encoder; left out: as te_lr", low=0.0, high=10.0
    )
    block_lr: tuple[str, ...] = setting(
        (), "Factors on the learning rate by pattern of the layer's name: 'pattern=factor', first match wins"
    )
    lora_plus: float = setting(
        1.0, "LoRA+: how many times faster the second factor (up) learns; 16 is usual, 1 is off", low=0.0, high=1000.0
    )
    weight_decay: float = setting(0.01, "Decoupled weight decay", low=0.0, high=1.0)
    beta1: float = setting(0.9, "Decay of the mean of gradients", low=0.0, high=0.9999)
    beta2: float = setting(0.999, "Decay of the mean of squared gradients", low=0.0, high=0.99999)
    schedule: str = setting("constant", "Learning rate over the run", choices=SCHEDULES)
    warmup_steps: int = setting(0, "Steps over which the learning rate rises", low=0, high=1000000)
    cycles: int = setting(1, "Restarts of cosine_restarts", low=1, high=1000)
    power: float = setting(1.0, "Power of the polynomial schedule", low=0.0, high=100.0)
    end_factor: float = setting(0.0, "Factor on the learning rate at the end of a falling schedule", low=0.0, high=1.0)
    ema: float = setting(0.0, "Decay of the average saved in place of the last state; 0: off", low=0.0, high=0.99999)
    ema_warmup: bool = setting(True, "Let the average begin short and grow: min(decay, (1 + step) / (10 + step))")
