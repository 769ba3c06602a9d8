"""A network as a learner: its parameters, their rates, and how it takes part in a step."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey
from lib_lora.networks.base import Layer, innermost
from lib_lora.networks.boft import Boft
from lib_lora.networks.dylora import DyLora
from lib_lora.networks.lora import Lora
from lib_lora.networks.oft import Oft
from lib_lora.ports import Patchable
from lib_lora.train import keyed
from lib_lora.train.attach import Drops, attach
from lib_lora.train.learners import Groups, Learner
from lib_lora.train.sections import NetworkSection, OptimizerSection
from lib_lora.train.targets import pattern, weight_of


class NetworkLearner(Learner):
    """The layers of a network, trained on a frozen model."""

    kind = "network"

    def __init__(self, model: Patchable, network: NetworkSection, layers: Mapping[LayerKey, Layer]) -> None:
        self.network = network
        self.layers = {key: layers[key] for key in sorted(layers)}
        self.slots = model.slots()
        self.drops = Drops(network.dropout, network.rank_dropout, network.module_dropout)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {f"{key}.{name}": p for key, layer in self.layers.items() for name, p in layer.named_parameters()}

    def groups(self, section: OptimizerSection) -> Groups:
        """One group for each part and rate. Raises BadConfig for a line of block_lr that cannot be read."""
        blocks = [_block(line) for line in section.block_lr]
        found: dict[tuple[str, float], list[nn.Parameter]] = {}
        for key, layer in self.layers.items():
            rate = _part_rate(key.part, section)
            rate *= next((factor for one, factor in blocks if one.search(str(key))), 1.0)
            for parameter, second in _by_role(layer):
                faster = section.lora_plus if second else 1.0
                found.setdefault((key.part, rate * faster), []).append(parameter)
        return [
            {"params": chosen, "lr": rate, "base_lr": rate, **({"text": True} if part != UNET else {})}
            for (part, rate), chosen in sorted(found.items(), key=lambda item: (item[0][0] != UNET, item[0]))
        ]

    def attached(self, model: Patchable, strength: float = 1.0) -> AbstractContextManager[None]:
        return attach(model, self.layers, self.drops, strength)

    def begin_step(self, seed: int, step: int) -> None:
        """DyLoRA: draw how far this step's ranks go, the same share of all layers' units, as `dyn` will take them."""
        units = [core for layer in self.layers.values() if isinstance(core := innermost(layer), DyLora)]
        if units:
            drawn = float(torch.rand((), generator=keyed.generator(seed, "dylora", step), dtype=torch.float64))
            for layer in units:
                layer.chosen = int(drawn * len(layer.ups))

    def after_step(self) -> None:
        """Scale every layer whose delta is larger than `scale_weight_norms` (Frobenius) down to it, as kohya does.

        Rotations are limited by the norm of their blocks, as in LyCORIS. Norms and biases have no limit.
        """
        most = self.network.scale_weight_norms
        if most <= 0:
            return
        with torch.no_grad():
            for key, layer in self.layers.items():
                core = innermost(layer)
                if core.second and core.kind != "norm":
                    # Not clamped to [max / 2, ...] first, as kohya has it: the ratio is the same.
                    size = _norm(core, weight_of(self.slots[key]))
                    _scale(core, most / size.clamp(min=most))


def _block(line: str) -> tuple[re.Pattern[str], float]:
    """'pattern=factor'."""
    text, equals, number = line.rpartition("=")
    try:
        factor = float(number)
        if not equals or not 0 <= factor < float("inf"):
            raise ValueError
    except ValueError:
        raise BadConfig(f"optimizer.block_lr: {line!r} is not accepted; give 'pattern=factor', factor from 0") from None
    return pattern("optimizer.block_lr", text), factor


def _part_rate(part: str, section: OptimizerSection) -> float:
    if part == TE2 and section.te2_lr is not None:
        return section.te2_lr
    return section.te_lr if part in (TE1, TE2) else section.lr


def _by_role(layer: Layer) -> Iterator[tuple[nn.Parameter, bool]]:
    """Every parameter, and whether it is the second factor of a product (LoRA+ is about products only)."""
    core = innermost(layer)
    second = {id(p) for name, p in core.named_parameters() if core.rank and name.partition(".")[0] in core.second}
    for parameter in layer.parameters():
        yield parameter, id(parameter) in second


def _norm(core: Layer, weight: Tensor) -> Tensor:
    if isinstance(core, (Oft, Boft)):
        return core.blocks.norm()
    factors = core.factors()
    if factors is None:
        return core.delta(weight).norm()
    # ||U D||^2 = sum (U^T U) o (D D^T): nothing of the weight's size is made.
    up, down = factors.up.double(), factors.down.double()
    squared = ((up.t() @ up) * (down @ down.t())).sum().clamp(min=0)
    return (squared.sqrt() * abs(factors.scale)).to(factors.up.dtype)


def _scale(core: Layer, ratio: Tensor) -> None:
    """Make the delta `ratio` times as large; by 1 nothing changes, to the last bit."""
    if isinstance(core, Lora) and core.mid is None:  # both factors by the root, as kohya does it
        for parameter in core.parameters():
            parameter.mul_(ratio.sqrt())
        return
    for name, parameter in core.named_parameters():
        if name.partition(".")[0] in core.second:
            parameter.mul_(ratio)
