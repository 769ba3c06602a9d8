"""Our methods: what each changes of a common job, and how the file it makes is put to use."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.quality_cases import SIZE, TRIGGER, Case
from lib_lora.errors import LoraError
from lib_lora.files.library import NetworkLibrary
from lib_lora.files.tensors import read_tensors
from lib_lora.miniature.place import checkpoint_path
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.prompt import extract
from lib_lora.runtime import Runtime
from lib_lora.tools.hypernet import read_hypernetwork
from lib_lora.train.config import make_job
from lib_lora.train.engine import train

BATCH, WARMUP, GAMMA, DECAY = 4, 5, 5.0, 0.01
COMMON: Mapping[str, Any] = {
    "data.resolution": SIZE,
    "data.trigger": TRIGGER,
    "training.batch_size": BATCH,
    "training.min_snr_gamma": GAMMA,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_steps": WARMUP,
    "optimizer.weight_decay": DECAY,
    "network.rank": 16,
    "network.alpha": 16.0,
    "network.conv_rank": 8,
    "network.conv_alpha": 8.0,
    "output.sidecar": False,
    "output.state_every": 0,
}
NETWORK, EMBEDDING, CHECKPOINT, HYPERNETWORK = "network", "embedding", "checkpoint", "hypernetwork"


@dataclass(frozen=True)
class Method:
    """A method: the kind of file it makes, its learning rate, and settings that differ from the common ones.

    `of` names another method whose run makes this one's file, called `file`. `longer`: how many times the common steps
    are trained, for what is cheap to store and slow to learn.
    """

    rate: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: str = NETWORK
    file: str = "trained.safetensors"
    of: str = ""
    longer: int = 1

    @property
    def rate_key(self) -> str:
        """The setting that the learning rate is."""
        return "method.token_lr" if self.kind == EMBEDDING else "optimizer.lr"


def _typed(name: str, rate: float, **more: Any) -> Method:
    return Method(rate, {"network.type": name, **{key.replace("__", "."): value for key, value in more.items()}})


_DREAMBOOTH = {"method.name": "dreambooth", "method.as_lora": 16}
# Rates: LoRA's and full's were tried on the tuning subject (one seed); the others are estimates, see RESULTS.md.
METHODS: Mapping[str, Method] = {
    "lora": _typed("lora", 5e-3),
    "locon": _typed("locon", 4e-3),
    "loha": _typed("loha", 4e-3, network__rank=8, network__alpha=8.0, network__conv_rank=4, network__conv_alpha=4.0),
    "lokr": _typed("lokr", 1e-2, network__factor=8),
    "ia3": _typed("ia3", 5e-2),
    "glora": _typed("glora", 1e-3),
    "full": _typed("full", 1e-3),
    "norm": _typed("norm", 2e-2),
    "dylora": replace(_typed("dylora", 5e-3), longer=2),  # a step trains a quarter of its ranks
    "oft": _typed("oft", 1e-3, network__rank=8),
    "boft": _typed("boft", 3e-4, network__rank=8),
    "dora": _typed("lora", 5e-3, network__dora=True),
    "rslora": _typed("lora", 1.25e-3, network__rslora=True),
    "lora+": _typed("lora", 4e-4, optimizer__lora_plus=16.0),
    "lora+te": _typed("lora", 5e-3, network__train_text_encoder=True, optimizer__te_lr=5e-4),
    "lora flat": _typed("lora", 5e-3, training__weighting="none"),
    "dreambooth": Method(6e-4, _DREAMBOOTH, CHECKPOINT),
    "dreambooth as lora": Method(6e-4, _DREAMBOOTH, NETWORK, "trained-lora.safetensors", of="dreambooth"),
    "dreambooth prior": Method(
        6e-4,
        {
            "method.name": "dreambooth",
            "prior.weight": 1.0,
            "prior.images": 8,
            "prior.draw_steps": 10,
            "prior.draw_cfg": 4.0,
            "prior.prompt": "[filewords]",
        },
        CHECKPOINT,
        longer=4,  # the class pictures pull back
    ),
    "textual inversion": Method(1e-2, {"method.name": "textual_inversion"}, EMBEDDING, longer=4),
    "pivotal tuning": Method(5e-3, {"method.name": "pivotal_tuning", "method.token_lr": 1e-2}),
    "custom diffusion": Method(1e-3, {"method.name": "custom_diffusion", "method.token_lr": 1e-2}),
    "hypernetwork": Method(1e-2, {"method.name": "hypernetwork"}, HYPERNETWORK, "trained.pt", longer=4),
}


@dataclass(frozen=True)
class Order:
    """What to train with, and where: the pictures of the case are in `pictures`, latents are kept in `latents`."""

    case: Case
    pictures: Path
    latents: Path
    folder: Path
    seed: int
    steps: int
    rate: float


def train_file(model: Any, name: str, order: Order) -> float | None:
    """Train by our engine on `model`, which stays as it is; the products lie in `folder`. Returns the last loss."""
    method, case, folder = METHODS[name], order.case, str(order.folder)
    job = make_job(
        {
            **COMMON,
            "data.folder": str(order.pictures),
            "data.cache": "disk",
            "data.cache_folder": str(order.latents),
            "data.class_word": case.class_word,
            "method.initial_word": case.class_word or "drawing",
            **method.settings,
            method.rate_key: order.rate,
            "training.steps": order.steps,
            "training.seed": order.seed,
            "output.folder": f"{folder}/runs",
            "output.name": "trained",
            **{f"output.{kind}_folder": folder for kind in (NETWORK, EMBEDDING, CHECKPOINT, HYPERNETWORK)},
        }
    )
    return train(job, model).loss


@contextmanager
def applied(kind: str, file: Path, model: Any) -> Iterator[Any]:
    """While open: the model to draw with, the file in use as a user would have it. Raises LoraError."""
    with ExitStack() as stack:
        if kind == CHECKPOINT:
            shutil.copyfile(checkpoint_path().with_suffix(".yaml"), file.with_suffix(".yaml"))
            yield load_checkpoint(file)
            return
        if kind == EMBEDDING:
            (tensor,) = read_tensors(file).values()
            stack.enter_context(model.extra_tokens({TRIGGER: {"te1": tensor.float()}}))
        elif kind == HYPERNETWORK:
            _before_keys_and_values(stack, read_hypernetwork(file), model)
        else:
            runtime = Runtime(NetworkLibrary([file.parent]))
            stack.callback(runtime.deactivate)
            report = runtime.activate(model, extract(f"<lora:{file.stem}:1>")[1])
            if not report.complete:
                raise LoraError(f"{file.name}: {report.summary()}")
            for network in runtime.active:
                words = {word: {"te1": v["clip_l"].float()} for word, v in network.embeddings.items()}
                stack.enter_context(model.extra_tokens(words))
        yield model


def _before_keys_and_values(stack: ExitStack, nets: Mapping[int, Mapping[str, nn.Module]], model: Any) -> None:
    """x + h(x) before keys and values, as the webui does at <hypernet:name:1>."""

    def hook(net: nn.Module) -> Any:
        def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (args[0] + net(args[0]), *args[1:])

        return before

    for path, module in model.unet.named_modules():
        for which in ("k", "v"):
            if path.endswith((f"attn1.to_{which}", f"attn2.to_{which}")) and module.in_features in nets:
                stack.callback(module.register_forward_pre_hook(hook(nets[module.in_features][which])).remove)
