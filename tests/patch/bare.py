"""A model of four layers, random networks for it, and what the patcher must make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from lib_lora.keys.layer_key import TE1, UNET, LayerKey
from lib_lora.networks.base import Layer, LayerSpec
from lib_lora.networks.lora import Lora
from lib_lora.networks.network import Network
from lib_lora.patch.patcher import Loaded, Source
from lib_lora.patch.pristine import Room, has_room
from lib_lora.ports import Slot
from lib_lora.prompt import Strengths

HERE: Room = has_room
AWAY: Room = lambda _device, _bytes: False  # noqa: E731
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


@dataclass
class Bare:
    """Only what the patcher asks of a model: named modules, where else its layers are, and an identity."""

    modules: Mapping[LayerKey, nn.Module]
    identity: str = "one"
    more: Mapping[LayerKey, Slot] = field(default_factory=dict)
    name: str = "bare"
    version: str = "sd1"
    prediction_type: str = "epsilon"
    extra: dict[str, object] = field(default_factory=dict)

    def modules_by_key(self) -> Mapping[LayerKey, nn.Module]:
        return self.modules

    def slots(self) -> Mapping[LayerKey, Slot]:
        return {**{name: Slot(module) for name, module in self.modules.items()}, **self.more}

    def base_identity(self) -> str:
        return self.identity


def key(path: str, part: str = UNET) -> LayerKey:
    return LayerKey(part, path)


def bare(dtype: torch.dtype, seed: int = 0) -> Bare:
    """A Linear, a 3x3 and a 1x1 convolution in the UNet, and a Linear in the text encoder."""
    generator = torch.Generator().manual_seed(seed)
    modules: dict[LayerKey, nn.Module] = {
        key("lin"): nn.Linear(6, 8),
        key("conv"): nn.Conv2d(4, 8, 3, padding=1),
        key("point"): nn.Conv2d(4, 6, 1),
        key("words", TE1): nn.Linear(5, 5),
        key("norm"): nn.LayerNorm(6),
    }
    for module in modules.values():
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        module.to(dtype)
    return Bare(modules)


def random_lora(shape: Sequence[int], rank: int, seed: int, tucker: bool = False) -> Lora:
    layer = Lora.init(LayerSpec(tuple(shape), rank, rank / 2, {"tucker": tucker}), torch.Generator().manual_seed(seed))
    layer.up.data.normal_(generator=torch.Generator().manual_seed(seed + 1))
    return layer


def network_for(model: Bare, seed: int, paths: Sequence[str] = ("lin", "conv", "point", "words")) -> Network:
    layers: dict[LayerKey, Layer] = {}
    for i, (name, module) in enumerate(model.modules.items()):
        if name.path in paths:
            weight = module.weight
            assert isinstance(weight, Tensor)
            layers[name] = random_lora(
                weight.shape, 2 + i % 2, seed * 10 + i, tucker=name.path == "conv" and seed % 2 == 1
            )
    return Network(f"net{seed}", layers)


def loaded(network: Network, te: float = 1.0, unet: float = 1.0, mtime: int = 1, dyn: int | None = None) -> Loaded:
    return Loaded(network, Source((Path(f"/{network.name}.safetensors"), mtime, 1, 0), Strengths(te, unet), dyn))


def weights(model: Bare) -> dict[str, Tensor]:
    return {f"{k}.{n}": p.data.clone() for k, m in model.modules.items() for n, p in m.named_parameters()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(bits(a[n]), bits(b[n])) for n in a)


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(torch.uint8)


class Shift(Layer):
    """Adds a number to every bias, and to every weight if told so."""

    kind, changes_bias = "shift", True

    def __init__(self, by: float, weight: bool = False) -> None:
        super().__init__()
        self.by = by
        self.changes_weight = weight

    def delta(self, weight: Tensor) -> Tensor:
        return torch.full_like(weight, self.by)

    def bias_delta(self, bias: Tensor) -> Tensor:
        return torch.full_like(bias, self.by)

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        return False

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Layer:
        raise NotImplementedError

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> Layer:
        raise NotImplementedError

    def to_tensors(self) -> dict[str, Tensor]:
        raise NotImplementedError


def expected(weight: Tensor, shares: Sequence[tuple[Layer, float]]) -> Tensor:
    """Float64 all the way, one rounding at the end."""
    total = weight.double()
    for layer, strength in shares:
        total = total + strength * layer.delta(weight.double()).double()
    return total.detach()


def weight(model: Bare, path: str = "lin") -> nn.Parameter:
    found = model.modules[key(path)].weight
    assert isinstance(found, nn.Parameter)
    return found
