"""The optimizers a job can name, each made from the job's settings and the parameters' groups."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.train.sections import OptimizerSection

logger = logging.getLogger(__name__)
Groups = list[dict[str, Any]]
Arguments = Mapping[str, Any]
PACKAGES = {"adafactor": "transformers", "prodigy": "prodigyopt", "schedulefree": "schedulefree"}
PROBED = 8192  # elements of a trial step: bitsandbytes keeps fewer than 4096 in 32 bits
BROKEN = (RuntimeError, AttributeError, NameError, OSError, TypeError, ValueError)  # as libraries without a GPU raise


def build_optimizer(section: OptimizerSection, groups: Groups) -> torch.optim.Optimizer:
    """The optimizer a job names, ready to train. `optimizer.args` go before the other settings.

    Raises BadConfig if a package it needs is missing or fails on this device, and for arguments it does not take.
    """
    optimizer = FACTORIES[section.name](section, groups, parse_arguments(section))
    train = getattr(optimizer, "train", None)
    if callable(train):  # the schedule-free ones keep two points, and train at one of them
        train()
    return optimizer


def require_package(section: OptimizerSection) -> None:
    """Raises BadConfig if the package of the job's optimizer is not there; to be asked before anything is prepared."""
    package = "bitsandbytes" if section.name.endswith("8bit") else PACKAGES.get(section.name)
    if package and importlib.util.find_spec(package) is None:
        raise _without(section, package, "it is not installed")


def parse_arguments(section: OptimizerSection) -> dict[str, Any]:
    """`optimizer.args` as a table; values are Python literals. Raises BadConfig for what is not name=value."""
    found: dict[str, Any] = {}
    for text in section.args:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name.isidentifier():
            raise BadConfig(f"optimizer.args has {text!r}, which is not name=value; write e.g. 'eps=1e-6'")
        if name in ("lr", "params") or name in found:
            why = "is given twice" if name in found else "has a setting of its own (optimizer.lr)"
            raise BadConfig(f"optimizer.args has {text!r}, but {name} {why}; take it out")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise BadConfig(
                f"optimizer.args has {text!r}, whose value is no Python literal; "
                "write a number, True, False, None, (0.9, 0.99) or a text in quotes"
            ) from error
    return found


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023, arXiv:2302.06675): only the sign of a mean of gradients m moves the parameters p.

    p <- p - lr (sign(b1 m + (1 - b1) g) + weight_decay p), then m <- b2 m + (1 - b2) g.
    """

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        if not (lr >= 0.0 and all(0.0 <= beta < 1.0 for beta in betas) and weight_decay >= 0.0):
            raise ValueError(f"lr = {lr}, betas = {betas}, weight_decay = {weight_decay} are out of range")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; `closure` computes the loss anew, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            chosen = [p for p in group["params"] if p.grad is not None]
            if chosen:
                self._step(chosen, group)
        return loss

    def _step(self, chosen: list[Tensor], group: dict[str, Any]) -> None:
        (first, second), rate = group["betas"], group["lr"]
        for p in chosen:
            if not self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        gradients: list[Any] = [p.grad for p in chosen]
        means = [self.state[p]["exp_avg"] for p in chosen]
        moves = torch._foreach_mul(means, first)
        torch._foreach_add_(moves, gradients, alpha=1.0 - first)
        signs = [move.sign_() for move in moves]
        torch._foreach_mul_(chosen, 1.0 - rate * group["weight_decay"])
        torch._foreach_add_(chosen, signs, alpha=-rate)
        torch._foreach_mul_(means, second)
        torch._foreach_add_(means, gradients, alpha=1.0 - second)


def _usual(section: OptimizerSection) -> dict[str, Any]:
    return {"betas": (section.beta1, section.beta2), "weight_decay": section.weight_decay}


def _make(kind: Callable[..., torch.optim.Optimizer], groups: Groups, options: Arguments) -> torch.optim.Optimizer:
    try:
        return kind(groups, **options)
    except (TypeError, ValueError) as error:
        takes = [name for name in inspect.signature(kind).parameters if name not in ("params", "lr")]
        raise BadConfig(
            f"optimizer {getattr(kind, '__name__', kind)} does not take {dict(options)} ({error}); "
            f"correct optimizer.args: it knows {', '.join(takes)}"
        ) from error


def _import(section: OptimizerSection, module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, *BROKEN) as error:
        raise _without(section, package, str(error)) from error


def _without(section: OptimizerSection, package: str, why: str) -> BadConfig:
    return BadConfig(
        f"optimizer.name = {section.name!r} needs {package}, which cannot be imported ({why}); "
        f"install it (pip install {package}) or use optimizer.name = 'adamw'"
    )


def _adamw(section: OptimizerSection, groups: Groups, arguments: Arguments) -> torch.optim.Optimizer:
    on_gpu = all(p.is_cuda for group in groups for p in group["params"])
    kernels = {"fused": True} if on_gpu else {"foreach": True}
    if {"fused", "foreach"} & set(arguments):
        kernels = {}
    return _make(torch.optim.AdamW, groups, {**_usual(section), **kernels, **arguments})


def _sgd(section: OptimizerSection, groups: Groups, arguments: Arguments) -> torch.optim.Optimizer:
    """Momentum is beta1. torch couples its weight decay: it goes through the momentum too."""
    options = {"momentum": section.beta1, "weight_decay": section.weight_decay, "foreach": True}
    return _make(torch.optim.SGD, groups, {**options, **arguments})


def _lion(section: OptimizerSection, groups: Groups, arguments: Arguments) -> torch.optim.Optimizer:
    return _make(Lion, groups, {**_usual(section), **arguments})


def _eight_bit(class_name: str) -> Callable[[OptimizerSection, Groups, Arguments], torch.optim.Optimizer]:
    def factory(section: OptimizerSection, groups: Groups, arguments: Arguments) -> torch.optim.Optimizer:
        kind = getattr(_import(section, "bitsandbytes", "bitsandbytes").optim, class_name)
        for device in {p.device for group in groups for p in group["params"]}:
            _probe(section, kind, device)
        return _make(kind, groups, {**_usual(section), **arguments})

    return factory


def _probe(section: OptimizerSection, kind: Callable[..., torch.optim.Optimizer], device: torch.device) -> None:
    """Take one step with it. Raises BadConfig if that fails or moves nothing, so that no run finds out later."""
    parameter = nn.Parameter(torch.ones(PROBED, device=device))
    parameter.grad = torch.ones_like(parameter)
    try:
        kind([parameter], lr=0.5).step()
        works = bool((parameter < 1.0).all())  # also waits for the device
        cause = "" if works else "a trial step moves nothing"
    except BROKEN as error:
        cause = str(error).strip() or type(error).__name__
    if cause:
        plain = "lion" if "lion" in section.name else "adamw"
        raise BadConfig(
            f"optimizer.name = {section.name!r}: bitsandbytes does not work on {device} ({cause.splitlines()[0]}); "
            f"install a bitsandbytes made for this device or use optimizer.name = {plain!r}"
        )


def _adafactor(section: OptimizerSection, groups: Groups, arguments: Arguments) -> torch.optim.Optimizer:
    """The rate is the job's: transformers' own steps (relative_step, scale_parameter) are off unless args say so.

    Its means of gradients are its own matter: beta1 and beta2 are not used, but args may give beta1.
    """
    kind = _import(section, "transformers.optimization", "transformers").Adafactor
    options = {"relative_step": False, "scale_parameter": False, "warmup_init": False}
    made = _make(kind, groups, {**options, "weight_decay": section.weight_decay, **arguments})
    if arguments.get("relative_step"):
        logger.warning("adafactor with relative_step=True chooses its rate itself: optimizer.lr has no effect")
    return made


def _prodigy(section: OptimizerSection, groups: Groups, arguments: Arguments) -> torch.optim.Optimizer:
    """It finds one rate for all groups; a group's rate is a factor on that. During warmup its safeguard is on."""
    kind = _import(section, "prodigyopt", "prodigyopt").Prodigy
    rates = sorted({group["lr"] for group in groups} - {0.0})
    if len(rates) > 1:
        raise BadConfig(
            f"optimizer.name = 'prodigy' takes one rate for all, but the job has {', '.join(f'{r:g}' for r in rates)}; "
            "give lr, te_lr, te2_lr and method.token_lr the same value, usually 1, without block_lr and lora_plus"
        )
    if rates and rates[0] != 1.0:
        logger.warning("prodigy finds the learning rate itself and wants optimizer.lr = 1, not %g", rates[0])
    options = {**_usual(section), "safeguard_warmup": section.warmup_steps > 0, **arguments}
    decay = options.pop("weight_decay")  # by way of the groups: given to the class it would print
    return _make(kind, [{**group, "weight_decay": decay} for group in groups], options)


def _schedulefree(section: OptimizerSection, groups: Groups, arguments: Arguments) -> torch.optim.Optimizer:
    kind = _import(section, "schedulefree", "schedulefree").AdamWScheduleFree
    if section.ema:
        raise BadConfig(
            f"optimizer.ema = {section.ema:g} with optimizer.name = 'schedulefree', which averages already; set it to 0"
        )
    if section.schedule != "constant":
        logger.warning("schedulefree is made for optimizer.schedule = constant, not %s", section.schedule)
    return _make(kind, groups, {**_usual(section), **arguments})


def _custom(section: OptimizerSection, groups: Groups, arguments: Arguments) -> torch.optim.Optimizer:
    """Any class by its path; it is given the betas, weight decay and rate of the job if it has such arguments."""
    module, _, name = section.path.rpartition(".")
    if not module:
        raise BadConfig(
            f"optimizer.path = {section.path!r} is no import path of a class; give one, e.g. torch.optim.NAdam"
        )
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, *BROKEN) as error:
        raise BadConfig(
            f"optimizer.path = {section.path!r} cannot be imported ({error}); correct it or install its package"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise BadConfig(f"optimizer.path = {section.path!r} is no subclass of torch.optim.Optimizer; give one that is")
    known = inspect.signature(kind).parameters
    offered = {name: value for name, value in {**_usual(section), "lr": section.lr}.items() if name in known}
    return _make(kind, groups, {**offered, **arguments})


FACTORIES: Mapping[str, Callable[[OptimizerSection, Groups, Arguments], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _eight_bit("AdamW8bit"),
    "paged_adamw8bit": _eight_bit("PagedAdamW8bit"),
    "lion": _lion,
    "lion8bit": _eight_bit("Lion8bit"),
    "paged_lion8bit": _eight_bit("PagedLion8bit"),
    "adafactor": _adafactor,
    "prodigy": _prodigy,
    "schedulefree": _schedulefree,
    "sgd": _sgd,
    "custom": _custom,
}
