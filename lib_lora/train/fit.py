"""Which settings a kind of training cannot honour: contradictions are refused with the reason, the rest is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from lib_lora.errors import BadConfig
from lib_lora.train.config import JobConfig, find
from lib_lora.train.methods.registry import method_of

OF_THE_UNET = ("lcm", "slider", "image_slider", "custom_diffusion")  # networks that must not change a text encoder
WITHOUT_NETWORK = ("textual_inversion", "hypernetwork")
SLIDERS = ("slider", "image_slider")
TEXT = ("network.train_text_encoder", "network.train_text_encoder_2")

# (setting, methods that cannot honour it, why); it is refused where it is not as it is by default.
REFUSED: tuple[tuple[str, tuple[str, ...], str], ...] = (
    *((key, OF_THE_UNET, "it changes the UNet alone, and both sides of its loss read the same text") for key in TEXT),
    *((key, WITHOUT_NETWORK, "it trains nothing of the model itself") for key in TEXT),
    ("network.train_unet", (*OF_THE_UNET, "hypernetwork"), "the UNet is all that it changes"),
    ("network.continue_from", WITHOUT_NETWORK, "it trains no network"),
    ("prior.weight", SLIDERS, "a slider learns a difference, of which class pictures show nothing"),
    ("data.masks", ("lcm", "slider"), "its loss looks at whole pictures"),
    ("training.epochs", ("slider",), "it has no pictures to pass over; set training.steps"),
)
_LAYERS = (
    "type", "rank", "alpha", "conv_rank", "conv_alpha", "targets", "include", "exclude", "ranks", "dora", "rslora",
    "tucker", "train_norms", "train_bias", "dropout", "rank_dropout", "module_dropout", "scale_weight_norms",
)  # fmt: skip
_NETWORKS = tuple(f"network.{name}" for name in _LAYERS)
_FIXED = tuple(f"network.{n}" for n in ("type", "targets", "dora", "train_norms", "train_bias"))
_OWN_LOSS = tuple(f"training.{n}" for n in (
    "loss", "huber_schedule", "weighting", "scale_v_pred", "v_pred_like", "timestep_low", "timestep_high",
    "timestep_sampling", "input_perturbation",
))  # fmt: skip
_NOISE = ("training.offset_noise", "training.offset_adaptive", "training.multires_levels")
_PICTURES = tuple(f"data.{n}" for n in ("buckets", "crop", "flip", "colour", "shuffle", "caption_dropout"))
_RATES = ("optimizer.block_lr", "optimizer.lora_plus", "optimizer.te2_lr", "training.te_fraction")
# Settings that change nothing in a kind of training; that they are set is told.
UNUSED: Mapping[str, tuple[str, ...]] = {
    "textual_inversion": (*_NETWORKS, *_RATES),
    "hypernetwork": (*_NETWORKS, *_RATES),
    "dreambooth": _FIXED,
    "custom_diffusion": (*_FIXED, "network.include", "training.te_fraction", "optimizer.te2_lr"),
    "lcm": (*_OWN_LOSS, "training.te_fraction", "optimizer.te2_lr"),
    "slider": (*_OWN_LOSS, *_NOISE, *_PICTURES, "training.te_fraction", "optimizer.te2_lr"),
    "image_slider": ("training.te_fraction", "optimizer.te2_lr"),
}


def refuse_misfits(job: JobConfig) -> None:
    """Raises BadConfig for settings that contradict each other or the kind of training. Looks at nothing else."""
    name = job.method.name
    for key, methods, why in REFUSED:
        if name in methods and job.get(key) != find(key).default:
            raise BadConfig(f"{_said(job, key)} does not go with method.name = {name!r}: {why}; take it out")
    for check in (_concepts, _text_alone, _ranges, _products):
        for message in check(job):
            raise BadConfig(message)


def unused(job: JobConfig) -> list[str]:
    """A note on settings that were changed and have no effect in the job's kind of training, if there are any."""
    name = job.method.name
    changed = [key for key in UNUSED.get(name, ()) if job.get(key) != find(key).default]
    if not changed:
        return []
    return [f"without effect in method.name = {name!r}: {', '.join(_said(job, key) for key in changed)}"]


def _said(job: JobConfig, key: str) -> str:
    return f"{key} = {job.get(key)!r}"


def _concepts(job: JobConfig) -> Iterator[str]:
    if job.concepts and job.method.name == "slider":
        yield "[[concept]] does not go with method.name = 'slider', which has no pictures; take the tables out"


def _text_alone(job: JobConfig) -> Iterator[str]:
    network, method = job.network, job.method.name
    if method in ("network", "dreambooth") and not network.train_unet and job.training.te_fraction < 1:
        yield (
            f"{_said(job, 'training.te_fraction')} with network.train_unet = False leaves nothing to train after that "
            "share of the run; set te_fraction to 1 and choose fewer steps, or train the UNet too"
        )


def _ranges(job: JobConfig) -> Iterator[str]:
    for low, high in (
        ("training.timestep_low", "training.timestep_high"),
        ("method.lcm_cfg_low", "method.lcm_cfg_high"),
    ):
        if job.get(low) > job.get(high):
            yield f"{_said(job, low)} is above {high} = {job.get(high)!r}; swap them"
    if job.data.bucket_low > job.data.bucket_high:
        yield f"{_said(job, 'data.bucket_low')} is above {_said(job, 'data.bucket_high')}; swap them"


def _products(job: JobConfig) -> Iterator[str]:
    """Files of one name: the later would replace the earlier. Case is not told apart everywhere."""
    names = Counter(product.name.casefold() for product in method_of(job.method.name).products(job, job.output.name))
    for name, count in names.items():
        if count > 1:
            yield (
                f"{count} files of this run would be called {name!r}; choose another output.name (now "
                f"{job.output.name!r}), or triggers that differ in letters"
            )
