"""A network's groups, its limits after a step, DyLoRA's draws; and the whole way on a net of one's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.files.codec import read_network, write_network
from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey
from lib_lora.models.any_module import ModuleModel
from lib_lora.networks.base import Layer, innermost
from lib_lora.networks.lora import Lora
from lib_lora.networks.network import Network
from lib_lora.patch.merge import Share, merged
from lib_lora.patch.patcher import Patcher
from lib_lora.patch.plan import Loaded, Source
from lib_lora.ports import Slot
from lib_lora.train.frozen import frozen
from lib_lora.train.network_learner import NetworkLearner
from lib_lora.train.optim import make_optimizer
from lib_lora.train.sections import OptimizerSection
from tests.train.zoo import IDS, NETWORKS, fresh, section, stirred, zoo


class Parts:
    """A model whose layers are in all three parts."""

    version = "sdxl"

    def __init__(self) -> None:
        self.modules = {
            LayerKey(part, f"blocks.{i}.to_q"): nn.Linear(6, 6) for part in (UNET, TE1, TE2) for i in (0, 1)
        }

    def slots(self) -> dict[LayerKey, Slot]:
        return {key: Slot(module) for key, module in self.modules.items()}

    def base_identity(self) -> str:
        return "parts"


def parts_learner(**settings: Any) -> NetworkLearner:
    model = Parts()
    layers: dict[LayerKey, Layer] = {key: Lora(torch.ones(6, 2), torch.ones(2, 6)) for key in reversed(model.modules)}
    return NetworkLearner(model, section(**settings), layers)


def rates(learner: NetworkLearner, **settings: Any) -> dict[str, float]:
    """The rate of each parameter by name; every one is in exactly one group."""
    groups = learner.groups(OptimizerSection(lr=1.0, te_lr=0.1, **settings))
    assert all(group["lr"] == group["base_lr"] for group in groups)
    found = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(learner.parameters())
    return {name: found[id(p)] for name, p in learner.parameters().items()}


def test_parts_have_rates_of_their_own() -> None:
    learner = parts_learner()
    assert list(learner.layers) == sorted(learner.layers)
    by_part = {name.split(":")[0]: rate for name, rate in rates(learner).items()}
    assert by_part == {"unet": 1.0, "te1": 0.1, "te2": 0.1}
    assert {n.split(":")[0]: r for n, r in rates(learner, te2_lr=0.5).items()} == {"unet": 1.0, "te1": 0.1, "te2": 0.5}
    groups = learner.groups(OptimizerSection())
    assert [group.get("text", False) for group in groups] == [False, True, True]
    again = parts_learner().groups(OptimizerSection())
    assert [(g["lr"], len(g["params"])) for g in groups] == [(g["lr"], len(g["params"])) for g in again]


def test_block_rates_and_lora_plus_multiply() -> None:
    learner = parts_learner()
    found = rates(learner, block_lr=(r"te1:.*\.0\.=0", r"\.0\.=0.5", "to_q=3"), lora_plus=16.0)
    assert found == pytest.approx(
        {
            **{f"te1:blocks.0.to_q.{n}": 0.0 for n in ("up", "down")},
            "te1:blocks.1.to_q.up": 4.8,
            "te1:blocks.1.to_q.down": 0.3,
            "te2:blocks.0.to_q.up": 0.8,
            "te2:blocks.0.to_q.down": 0.05,
            "te2:blocks.1.to_q.up": 4.8,
            "te2:blocks.1.to_q.down": 0.3,
            "unet:blocks.0.to_q.up": 8.0,
            "unet:blocks.0.to_q.down": 0.5,
            "unet:blocks.1.to_q.up": 48.0,
            "unet:blocks.1.to_q.down": 3.0,
        }
    )
    for line in ("x", "x=", "x=-1", "x=inf", "(=1"):
        with pytest.raises(BadConfig, match="optimizer.block_lr"):
            rates(learner, block_lr=(line,))


FASTER = {  # the parameters LoRA+ trains faster, by their last name
    "lora": {"up"},
    "lora dora bias norms": {"up"},
    "loha": {"hada_w2_a"},
    "lokr factor": {"lokr_w2_b"},
    "glora": {"a2", "b2"},
    "dylora": {"0", "1"},  # ups.0, ups.1
    "ia3": set(),
    "full": set(),
    "norm": set(),
    "oft": set(),
}


@pytest.mark.parametrize("name", FASTER)
def test_lora_plus_is_about_second_factors(name: str) -> None:
    _, model = zoo(torch.float32)
    learner = NetworkLearner(model, section(name), fresh(model, section(name)))
    found = rates(learner, lora_plus=16.0)
    faster = {n for n, rate in found.items() if rate == 16.0}
    assert {n.rpartition(".")[2] for n in faster} == FASTER[name]
    assert not [n for n in faster if ".downs." in n]
    zero = {n for n, p in learner.parameters().items() if not p.any()}
    assert faster <= zero, "second factors begin at 0"


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "norm"])
def test_norms_are_limited(name: str) -> None:
    _, model = zoo()
    layers = fresh(model, section(name))
    stirred(layers.values())
    learner = NetworkLearner(model, section(name, scale_weight_norms=0.7), layers)

    def norms() -> dict[LayerKey, float]:
        found = {}
        for key, layer in layers.items():
            core = innermost(layer)
            slot = model.slots()[key]
            weight = getattr(slot.module, slot.weight)[slot.rows or slice(None)]
            if core.kind != "norm":
                found[key] = float(core.blocks.norm() if core.kind in ("oft", "boft") else core.delta(weight).norm())
        return found

    with torch.no_grad():
        before = norms()
        small = min(before, key=before.__getitem__)
        for name_, parameter in layers[small].named_parameters():
            if "magnitude" not in name_ and "rescale" not in name_:
                parameter.mul_(0.01)
        before = norms()
        kept = [p.clone() for p in layers[small].parameters()]
        learner.after_step()
        after = norms()
    assert before[small] < 0.7 < max(before.values())
    assert {key: pytest.approx(min(size, 0.7), rel=1e-9) for key, size in before.items()} == after
    assert all(torch.equal(a, b) for a, b in zip(kept, layers[small].parameters()))  # to the last bit


def test_the_limit_is_kohyas() -> None:
    """kohya's rule on a LoRA: both factors by the root of max / norm."""
    _, model = zoo()
    layers = fresh(model, section())
    stirred(layers.values())
    layer = layers[LayerKey(UNET, "block.wide")]
    assert isinstance(layer, Lora)
    up, down = layer.up.detach().clone(), layer.down.detach().clone()
    ratio = 0.3 / float(((up @ down) * layer.scale).norm())
    NetworkLearner(model, section(scale_weight_norms=0.3), layers).after_step()
    assert torch.allclose(layer.up, up * math.sqrt(ratio), rtol=1e-10)
    assert torch.allclose(layer.down, down * math.sqrt(ratio), rtol=1e-10)


def test_units_are_drawn_by_seed_and_step() -> None:
    _, model = zoo(torch.float32)
    network = section("dylora", rank=8, conv_rank=4)
    learner = NetworkLearner(model, network, fresh(model, network))
    draws = []
    for step in range(60):
        learner.begin_step(3, step)
        chosen = {len(layer.ups): layer.chosen for layer in learner.layers.values()}
        assert chosen.keys() == {2, 4} and chosen[2] == chosen[4] // 2  # the same share of ranks everywhere
        draws.append(chosen[4])
    assert set(draws) == {0, 1, 2, 3}
    learner.begin_step(3, 7)
    assert learner.layers[LayerKey(UNET, "block.wide")].chosen == draws[7]  # a resumed run draws the same
    learner.begin_step(4, 7)
    others = []
    for step in range(60):
        learner.begin_step(4, step)
        others.append(learner.layers[LayerKey(UNET, "block.wide")].chosen)
    assert others != draws


def test_an_optimizer_leaves_units_alone_that_were_not_drawn() -> None:
    net, model = zoo(torch.float32)
    network = section("dylora")
    learner = NetworkLearner(model, network, fresh(model, network))
    section_ = OptimizerSection(lr=0.01, weight_decay=0.1)
    optimizer = make_optimizer(section_, learner.groups(section_))
    with learner.attached(model):
        for step in range(8):
            learner.begin_step(0, step)
            before = {n: p.detach().clone() for n, p in learner.parameters().items()}
            net(IDS).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            learner.after_step()
            moved = {n for n, p in learner.parameters().items() if not torch.equal(p, before[n])}
            assert moved
            for name in moved:
                key, _, unit = name.rpartition(".")
                path = LayerKey(UNET, key.rpartition(".")[0].removeprefix("unet:"))
                assert int(unit) == learner.layers[path].chosen, name


class Attention(nn.Module):
    """One head with projections of one's own names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w_q, self.w_k, self.w_v = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same."""
        return x + nn.functional.scaled_dot_product_attention(self.w_q(x), self.w_k(x), self.w_v(x))


class SmallDiffusion(nn.Module):
    """Says the noise in (batch, 8, 4) noisy points at (batch,) times from 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.come_in = nn.Linear(5, 16)
        self.my_blocks = nn.ModuleList(Attention(16) for _ in range(2))
        self.go_out = nn.Linear(16, 4)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.come_in(torch.cat([x, time[:, None, None].expand(*x.shape[:2], 1)], dim=-1))
        for block in self.my_blocks:
            y = torch.tanh(block(y))
        return self.go_out(y)


def noised(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy points of one shape, times, and the noise."""
    generator = torch.Generator().manual_seed(step)
    clean = torch.linspace(-1, 1, 32, dtype=torch.float64).view(1, 8, 4).expand(32, -1, -1)
    noise = torch.randn(32, 8, 4, generator=generator, dtype=torch.float64)
    time = torch.rand(32, generator=generator, dtype=torch.float64)
    level = time[:, None, None]
    return (1 - level) * clean + level * noise, time, noise


@pytest.mark.parametrize(
    "name", ["lora", "lora dora", "loha", "lokr factor", "ia3", "glora", "full", "dylora", "oft", "boft"]
)
def test_the_whole_way_on_a_net_of_ones_own(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = SmallDiffusion().double().eval()
    model = ModuleModel(net, [r"\.w_[qkv]$"], name="small")
    network = section(name)
    layers = {key: layer.double() for key, layer in fresh(model, network).items()}
    assert {key.path for key in layers} == {f"my_blocks.{i}.w_{n}" for i in (0, 1) for n in "qkv"}
    learner = NetworkLearner(model, network, layers)
    options = OptimizerSection(lr=0.05)
    optimizer = make_optimizer(options, learner.groups(options))
    noisy, time, noise = noised(999)
    plain = net(noisy, time).detach()
    with frozen(model, checkpointing=False), learner.attached(model):
        for step in range(50):
            learner.begin_step(0, step)
            points, at, wanted = noised(step)
            (net(points, at) - wanted).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            trained = net(noisy, time)
    assert (trained - noise).square().mean() < 0.97 * (plain - noise).square().mean()  # unseen noise
    path = tmp_path / "small.safetensors"
    write_network(path, Network("small", layers), {"about": "w_q, w_k, w_v"}, names=model.names())
    read = read_network(path, known=model.known())
    assert read.unknown == () and read.layers.keys() == layers.keys() and read.metadata == {"about": "w_q, w_k, w_v"}
    with torch.no_grad(), Patcher().applied(model, [Loaded(read, Source((path, 0, 0, 0)))]) as report:
        assert report.networks[0].applied == len(layers)
        assert (net(noisy, time) - trained).abs().max() < 1e-6
    assert torch.equal(net(noisy, time), plain)  # taken out again
    with torch.no_grad():  # and merged for good
        for key, layer in read.layers.items():
            weight = net.get_submodule(key.path).weight
            weight.copy_(merged(weight.detach(), [Share(layer, 1.0)]))
        assert (net(noisy, time) - trained).abs().max() < 1e-6
    assert (trained - plain).abs().max() > 1e-2
