"""Hypernetworks as the webui has them: small nets before cross- and self-attention's keys and values.

`k = W_k (x + h_k(x))`, `v = W_v (x + h_v(x))`, one pair (h_k, h_v) for each width of x.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.keys.layer_key import UNET
from lib_lora.ports import DiffusionModel
from lib_lora.train.learners import Groups, Learner
from lib_lora.train.pickled import write_pickled
from lib_lora.train.sections import Method, OptimizerSection

ACTIVATIONS: Mapping[str, type[nn.Module] | None] = {
    "linear": None,
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "swish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
WEIGHT_STD = 0.01
KEYS, VALUES = (".attn1.to_k", ".attn2.to_k"), (".attn1.to_v", ".attn2.to_v")


class Shape:
    """How each net is built: widths as multiples of its input, activation, layer norms, dropout."""

    def __init__(self, section: Method) -> None:
        try:
            self.widths = [float(part) for part in section.hyper_layers.split(",")]
        except ValueError:
            self.widths = []
        if len(self.widths) < 2 or self.widths[0] != 1 or self.widths[-1] != 1 or min(self.widths) <= 0:
            raise BadConfig(
                f"method.hyper_layers = {section.hyper_layers!r} is not accepted; give multiples of the width that "
                "begin and end with 1, e.g. 1, 2, 1"
            )
        self.activation, self.norm, self.dropout = section.hyper_activation, section.hyper_norm, section.hyper_dropout

    def net(self, width: int, generator: torch.Generator) -> nn.Sequential:
        """One net whose output is small at first: normal weights of 0.01, biases 0, as the webui begins."""
        layers: list[nn.Module] = []
        last = len(self.widths) - 2
        for number, (before, after) in enumerate(zip(self.widths, self.widths[1:])):
            layer = nn.Linear(int(width * before), int(width * after))
            with torch.no_grad():
                layer.weight.normal_(0.0, WEIGHT_STD, generator=generator)
                layer.bias.zero_()
            layers.append(layer)
            kind = ACTIVATIONS[self.activation]
            if kind is not None and number < last:
                layers.append(kind())
            if self.norm:
                norm = nn.LayerNorm(int(width * after))
                with torch.no_grad():  # torch's own ones would bring back what the small weights took away
                    norm.weight.normal_(0.0, WEIGHT_STD, generator=generator)
                layers.append(norm)
            if self.dropout and number < last:
                layers.append(nn.Dropout(self.dropout))
        return nn.Sequential(*layers)

    def dropouts(self) -> list[float]:
        """The webui's `dropout_structure`: one number for each width, none at the ends."""
        return [0.0, *[self.dropout] * (len(self.widths) - 2), 0.0]


class HypernetworkLearner(Learner):
    """One pair of nets for each width that keys and values of the UNet's attention read."""

    kind = "hypernetwork"

    def __init__(self, model: DiffusionModel, section: Method, generator: torch.Generator) -> None:
        self.shape = Shape(section)
        places = {key: m for key, m in model.modules_by_key().items() if key.part == UNET}
        self.readers: dict[str, list[tuple[int, nn.Module]]] = {
            which: [(_width(places[key]), places[key]) for key in sorted(places) if key.path.endswith(ends)]
            for which, ends in (("k", KEYS), ("v", VALUES))
        }
        widths = sorted({width for readers in self.readers.values() for width, _ in readers})
        device = next(model.roots()[UNET].parameters()).device
        self.nets = {
            width: {which: self.shape.net(width, generator).to(device) for which in ("k", "v")} for width in widths
        }

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {
            f"{width}.{which}.{name}": parameter
            for width, pair in self.nets.items()
            for which, net in pair.items()
            for name, parameter in net.named_parameters()
        }

    def groups(self, section: OptimizerSection) -> Groups:
        return [{"params": list(self.parameters().values()), "lr": section.lr, "base_lr": section.lr}]

    @contextmanager
    def attached(self, model: DiffusionModel, strength: float = 1.0) -> Iterator[None]:
        with ExitStack() as stack:
            for which, readers in self.readers.items():
                for width, module in readers:
                    hook = _Before(self.nets[width][which])
                    stack.callback(module.register_forward_pre_hook(hook).remove)
            yield


def _width(reader: nn.Module) -> int:
    weight = reader.weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[1])


class _Before:
    """x + h(x) in the place of x, h in float32; dropout only while gradients are wanted, so never in previews."""

    def __init__(self, net: nn.Sequential) -> None:
        self.net = net

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = args
        self.net.train(torch.is_grad_enabled())
        with torch.autocast(x.device.type, enabled=False):
            change = self.net(x.float())
        return (x + change.to(x.dtype), *rest)


def write_hypernetwork(path: Path, learner: HypernetworkLearner, facts: Mapping[str, Any]) -> None:
    """Write the webui's .pt file. `facts`: name, step, sd_checkpoint, sd_checkpoint_name. Raises BadFile."""
    shape = learner.shape
    record: dict[Any, Any] = {
        width: tuple(
            {f"linear.{name}": t.detach().cpu().clone() for name, t in pair[which].state_dict().items()}
            for which in ("k", "v")
        )
        for width, pair in learner.nets.items()
    }
    record |= {
        "layer_structure": shape.widths,
        "activation_func": shape.activation,
        "is_layer_norm": shape.norm,
        "weight_initialization": "Normal",
        "activate_output": False,
        "use_dropout": shape.dropout > 0,
        "dropout_structure": shape.dropouts(),
        "last_layer_dropout": len(shape.widths) > 2 and shape.dropout > 0,
        "optional_info": None,
        **facts,
    }
    write_pickled(path, record)
