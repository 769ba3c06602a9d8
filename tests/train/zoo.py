"""A small net with every kind of place a layer can have, and every kind of network a job can name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora.keys.layer_key import LayerKey
from lib_lora.models.any_module import ModuleModel
from lib_lora.networks.base import Layer
from lib_lora.train import keyed
from lib_lora.train.layers import new_layers
from lib_lora.train.sections import NetworkSection

BASE: dict[str, Any] = {"rank": 4, "alpha": 3.0, "conv_rank": 2, "conv_alpha": 1.5}
# name -> settings; between them every type and every modifier
NETWORKS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora rslora": {"rslora": True},
    "lora dora": {"dora": True},
    "lora dora rows": {"dora": True, "dora_axis": "rows"},
    "lora bias": {"train_bias": True},
    "lora dora bias norms": {"dora": True, "train_bias": True, "train_norms": True},
    "locon": {"type": "locon"},
    "locon tucker": {"type": "locon", "tucker": True},
    "loha": {"type": "loha"},
    "loha tucker dora": {"type": "loha", "tucker": True, "dora": True},
    "loha rslora": {"type": "loha", "rslora": True},
    "lokr": {"type": "lokr", "rank": 1},
    "lokr factor": {"type": "lokr", "rank": 1, "factor": 2},
    "lokr both": {"type": "lokr", "rank": 1, "conv_rank": 1, "decompose_both": True},
    "lokr full": {"type": "lokr", "full_matrix": True},
    "lokr tucker": {"type": "lokr", "conv_rank": 1, "tucker": True},
    "lokr dora rows": {"type": "lokr", "rank": 1, "dora": True, "dora_axis": "rows"},
    "ia3": {"type": "ia3"},
    "glora": {"type": "glora"},
    "glora rslora dora": {"type": "glora", "rslora": True, "dora": True},
    "full": {"type": "full"},
    "full bias norms": {"type": "full", "train_bias": True, "train_norms": True},
    "norm": {"type": "norm"},
    "dylora": {"type": "dylora", "unit": 2},
    "dylora dora": {"type": "dylora", "unit": 2, "dora": True},
    "oft": {"type": "oft", "rank": 8},
    "oft constraint rescale": {"type": "oft", "rank": 8, "constraint": 2.0**-7, "rescale": True},
    "boft": {"type": "boft", "rank": 8, "conv_rank": 8},
    "boft rescale": {"type": "boft", "rank": 8, "conv_rank": 8, "constraint": 2.0**-7, "rescale": True},
}


class Block(nn.Module):
    """Linears, norms, convolutions and fused attention, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(16)
        self.wide = nn.Linear(16, 24)
        self.attn = nn.MultiheadAttention(24, 2, batch_first=True)
        self.narrow = nn.Linear(24, 16, bias=False)
        self.gn = nn.GroupNorm(4, 16)
        self.conv = nn.Conv2d(16, 24, 3, padding=1)
        self.point = nn.Conv2d(24, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, 16) -> the same."""
        y = self.wide(self.ln(x))
        y = y + self.attn(y, y, y, need_weights=False)[0]
        y = self.narrow(y)
        picture = self.gn(y.transpose(1, 2)).unflatten(2, (2, -1))
        return x + self.point(torch.tanh(self.conv(picture))).flatten(2).transpose(1, 2)


class Zoo(nn.Module):
    """An embedding and a block."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(11, 16)
        self.block = Block()

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, 4) tokens -> (batch, 4, 16)."""
        return self.block(self.token_embedding(ids))


IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 1, 0]])


def zoo(dtype: torch.dtype = torch.float64) -> tuple[Zoo, ModuleModel]:
    """A frozen net, the same at every call, and the model over all of its layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = Zoo()
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.4)
    net = net.to(dtype).eval().requires_grad_(False)
    return net, ModuleModel(net)


def section(name: str = "lora", **changes: Any) -> NetworkSection:
    """The settings of `NETWORKS[name]`."""
    return NetworkSection(**{**BASE, **NETWORKS[name], **changes})


def fresh(model: ModuleModel, network: NetworkSection) -> dict[LayerKey, Layer]:
    """New layers, float32."""
    return new_layers(model, network, keyed.generator(0, "layers"))


def stirred(layers: Iterable[Layer], dtype: torch.dtype = torch.float64, std: float = 0.2) -> None:
    """Every trained number is moved, so that nothing is zero; in place."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.to(dtype).parameters():
                parameter += std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)


def state(net: nn.Module) -> list[Any]:
    """Every parameter object, hook and instance attribute `forward`: what must be as before after a run."""
    found: list[Any] = []
    for module in net.modules():
        found += [(name, id(p), p.requires_grad if p is not None else None) for name, p in module._parameters.items()]
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_always_called)
        found += [tuple(h) for h in hooks] + ["forward" in module.__dict__]
    return found
