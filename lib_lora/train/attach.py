"""Trainable layers hung on a frozen model, and taken off again without a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lib_lora.errors import BadConfig
from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.networks.base import Layer, LayerSpec, Op
from lib_lora.networks.registry import by_kind
from lib_lora.ports import DiffusionModel
from lib_lora.train.config import NetworkSection

Layers = Mapping[LayerKey, Layer]
# A path with one of these in it belongs to the attention blocks or to the text encoder's layers ...
ATTENTION_MARKS = (".attentions.", "encoder.layers.")
# ... and with one of these to the convolutional blocks between them (kohya's and LyCORIS' choice for LoCon).
CONV_MARKS = (".resnets.", ".downsamplers.", ".upsamplers.")
BLOCK_CLASSES = ("BasicTransformerBlock", "ResnetBlock2D")  # what one checkpoint spans in diffusers' UNet


def target_keys(model: DiffusionModel, network: NetworkSection) -> list[LayerKey]:
    """The layers a network of this kind is trained on, sorted. Raises BadConfig if a chosen part has none."""
    wanted = []
    for part, chosen in (("unet", network.train_unet), ("te", network.train_text_encoder)):
        keys = [
            key for key, m in model.modules_by_key().items() if key.part.startswith(part) and _takes(key, m, network)
        ]
        if chosen and not keys:
            raise BadConfig(
                f"network.train_{'unet' if part == 'unet' else 'text_encoder'} = True, but model {model.name!r} "
                "has no layer of that part; switch it off or use another model"
            )
        wanted += keys if chosen else []
    return sorted(wanted)


def new_layers(model: DiffusionModel, network: NetworkSection, generator: torch.Generator) -> dict[LayerKey, Layer]:
    """A fresh layer for every target, delta 0, float32, on the device of its module."""
    modules = model.modules_by_key()
    layers: dict[LayerKey, Layer] = {}
    for key in target_keys(model, network):
        weight: Any = modules[key].weight
        wide = weight.dim() == 4 and tuple(weight.shape[2:]) != (1, 1)
        rank, alpha = (network.conv_rank, network.conv_alpha) if wide else (network.rank, network.alpha)
        layer = by_kind("lora").init(LayerSpec(tuple(weight.shape), rank, alpha), generator)
        layers[key] = layer.to(weight.device)
    return layers


@contextmanager
def attach(model: DiffusionModel, layers: Layers) -> Iterator[None]:
    """Add every layer's branch to its module's output until the block ends. Raises BadConfig if a module is missing."""
    modules = model.modules_by_key()
    missing = sorted(str(key) for key in layers if key not in modules)
    if missing:
        raise BadConfig(
            f"{len(missing)} layers have no module in model {model.name!r}, first: {missing[0]!r}; "
            "train against the model the layers were made for"
        )
    with ExitStack() as stack:
        for key, layer in layers.items():
            module = modules[key]
            stack.callback(module.register_forward_hook(_Hook(layer, Op.of(module))).remove)
        yield


@contextmanager
def frozen(model: DiffusionModel, *, checkpointing: bool) -> Iterator[None]:
    """The base as training wants it: no gradients of its own, eval mode; everything is as before when the block ends.

    A model that needs more (ldm's own checkpoint function starves hooked layers of gradients) brings a
    `training_session(gradient_checkpointing)`, which is entered too.
    """
    roots = list(model.roots().values())
    grads = [(p, p.requires_grad) for root in roots for p in root.parameters()]
    modes = [(m, m.training) for root in roots for m in root.modules()]
    try:
        for parameter, _ in grads:
            parameter.requires_grad_(False)
        for module, _ in modes:
            module.training = False
        with _session(model, checkpointing):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, wanted in grads:
            parameter.requires_grad_(wanted)


class _Hook:
    """What a forward hook adds: the layer's branch, computed in the factors' dtype, in the output's own."""

    def __init__(self, layer: Layer, op: Op) -> None:
        self.layer, self.op = layer, op
        self.dtype = next(layer.parameters()).dtype

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        weight: Any = module.weight
        return output + self.layer.branch(args[0].to(self.dtype), self.op, weight).to(output.dtype)


def _takes(key: LayerKey, module: nn.Module, network: NetworkSection) -> bool:
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() not in (2, 4):
        return False
    marks = ATTENTION_MARKS + (CONV_MARKS if network.type == "locon" and key.part == UNET else ())
    return any(mark in key.path for mark in marks)


def _session(model: DiffusionModel, checkpointing: bool) -> AbstractContextManager[None]:
    own = getattr(model, "training_session", None)
    if own is not None:
        return own(gradient_checkpointing=checkpointing)
    return _checkpointed(model.roots()[UNET] if checkpointing else nn.Module())


@contextmanager
def _checkpointed(root: nn.Module) -> Iterator[None]:
    """Recompute each block of `root` in the backward pass, through an attribute of the instance."""
    blocks = [module for module in root.modules() if type(module).__name__ in BLOCK_CLASSES]
    try:
        for block in blocks:
            block.__dict__["forward"] = partial(checkpoint, block.forward, use_reentrant=False)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
