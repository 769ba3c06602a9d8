"""Applying a LoRA to a model of SD1.5's sizes: our patcher beside the plain way, in one run on random weights.

    python -m benchmarks.apply [--rank 32] [--networks 1] [--dtype fp32] [--device cpu]

The plain way is what most programs do: for each layer and network, build the whole delta and add it. "Floor" is
reading every touched weight and writing it once, as one copy does. Ratios are to the floor; lower is better.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lib_lora.keys.checkpoint import default_targets
from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.networks.lora import Lora
from lib_lora.networks.network import Network
from lib_lora.patch.patcher import Loaded, Patcher, Source
from lib_lora.ports import Slot
from lib_lora.prompt import Strengths

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def shape_of(path: str) -> tuple[int, int]:
    """(out, in) of SD1.5's weight at a transformer path of its UNet."""
    level = {"down_blocks.0": 320, "down_blocks.1": 640, "up_blocks.3": 320, "up_blocks.2": 640}
    width = next((w for prefix, w in level.items() if path.startswith(prefix)), 1280)
    if path.endswith(("attn2.to_k", "attn2.to_v")):
        return width, 768
    if path.endswith("ff.net.0.proj"):
        return 8 * width, width
    return width, 4 * width if path.endswith("ff.net.2") else width


class Weights:
    """What the patcher needs of a model, over bare Linear modules."""

    name, version, prediction_type = "random weights", "sd1", "epsilon"

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self.modules: dict[LayerKey, nn.Module] = {}
        for path in default_targets(UNET):
            out, width = shape_of(path)
            linear = nn.Linear(width, out, bias=False, device="meta", dtype=dtype).to_empty(device=device)
            linear.weight.data.normal_(0, 0.02)
            self.modules[LayerKey(UNET, path)] = linear

    def modules_by_key(self) -> dict[LayerKey, nn.Module]:
        """All layers."""
        return self.modules

    def slots(self) -> dict[LayerKey, Slot]:
        """Where their weights are."""
        return {key: Slot(module) for key, module in self.modules.items()}

    def base_identity(self) -> str:
        """Always the same weights."""
        return self.name


def network(weights: Weights, rank: int, seed: int, dtype: torch.dtype) -> Network:
    """A random LoRA for every layer."""
    gen = torch.Generator().manual_seed(seed)
    layers = {}
    for key, module in weights.modules.items():
        out, width = module.weight.shape
        up, down = torch.randn(out, rank, generator=gen) * 0.01, torch.randn(rank, width, generator=gen) * 0.01
        layers[key] = Lora(up.to(module.weight.device, dtype), down.to(module.weight.device, dtype), alpha=rank / 2)
    return Network(f"net{seed}", layers)


@torch.no_grad()
def plainly(weights: Weights, networks: list[Network]) -> dict[LayerKey, Tensor]:
    """Back everything up, then one network after another: build the delta in float32, add it in the weight's dtype."""
    backup = {key: module.weight.detach().clone() for key, module in weights.modules.items()}
    for net in networks:
        for key, layer in net.layers.items():
            weight = weights.modules[key].weight
            weight += layer.delta(weight).to(weight.dtype)
    return backup


def timed(device: str, work: Callable[[], object]) -> float:
    """Seconds of one call."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--networks", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    dtype = DTYPES[args.dtype]
    weights = Weights(dtype, args.device)
    nets = [network(weights, args.rank, i, dtype) for i in range(args.networks)]
    spare = {key: torch.empty_like(module.weight) for key, module in weights.modules.items()}
    best: dict[str, float] = {}
    for turn in range(args.repeats):
        patcher = Patcher()

        def put_back(backup: dict[LayerKey, Tensor]) -> None:
            for key, module in weights.modules.items():
                module.weight.data.copy_(backup[key])

        def at(strength: float, turn: int = turn, patcher: Patcher = patcher) -> None:
            sources = [Source((Path(n.name), turn, 0, 0), Strengths(strength, strength)) for n in nets]
            patcher.apply(weights, [Loaded(n, s) for n, s in zip(nets, sources, strict=True)])  # type: ignore[arg-type]

        kept: list[dict[LayerKey, Tensor]] = []
        steps = {
            "floor: one copy": lambda: [spare[k].copy_(m.weight.data) for k, m in weights.modules.items()],
            "plain: first apply": lambda kept=kept: kept.append(plainly(weights, nets)),
            "plain: restore": lambda kept=kept: put_back(kept.pop()),
            "ours: first apply": lambda at=at: at(1.0),
            "ours: other strength": lambda at=at: at(0.7),
            "ours: same again": lambda at=at: at(0.7),
            "ours: restore": patcher.restore,
        }
        for name, work in steps.items():
            best[name] = min(best.get(name, float("inf")), timed(args.device, work))
    floor = best["floor: one copy"]
    numbers = sum(m.weight.numel() for m in weights.modules.values())
    print(f"{numbers / 1e6:.0f} M weights, {args.networks} network(s) of rank {args.rank}, {args.dtype}, {args.device}")
    for name, seconds in best.items():
        print(f"{name:22} {seconds * 1000:9.1f} ms   {seconds / floor:7.2f} x floor")


if __name__ == "__main__":
    main()
