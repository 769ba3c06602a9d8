"""What a training step costs: our layers beside peft's and LyCORIS' on the same UNet, in one run.

    python -m benchmarks.training [--checkpoint FILE] [--types lora,loha,lokr] [--side 128] [--batch 4]
                                  [--rounds 7] [--device cpu] [--dtype fp32]

A step is forward, mean squared error, backward and one AdamW step on random latents and text states, without the VAE
and the text encoder. The contenders take turns, so that whatever else the machine does hits all alike; printed is the
median (on a CPU of the process's own time), and its ratio to the first contender of the type.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_lora.miniature.place import checkpoint_path
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.ports import Conditioning
from lib_lora.train.frozen import frozen
from lib_lora.train.layers import new_layers
from lib_lora.train.network_learner import NetworkLearner
from lib_lora.train.sections import NetworkSection, OptimizerSection

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
RANK = 16
PEFT_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]


@dataclass(frozen=True)
class Batch:
    """Random inputs of a step."""

    noisy: Tensor
    times: Tensor
    text: Tensor
    target: Tensor


@dataclass
class Contender:
    """One way to train: `run` is a step; `count` is the number of trained values."""

    name: str
    run: Callable[[Batch], None]
    count: int


def ours(model: DiffusersModel, kind: str, stack: ExitStack) -> Contender:
    """Layers of our own, hung on once for all steps, as the engine does it."""
    network = NetworkSection(type=kind, rank=RANK, alpha=RANK, targets="attention")
    learner = NetworkLearner(model, network, new_layers(model, network, torch.Generator().manual_seed(0)))
    optimizer = torch.optim.AdamW(learner.groups(OptimizerSection()), foreach=True)

    stack.enter_context(learner.attached(model))

    def run(batch: Batch) -> None:
        output = model.predict(batch.noisy, batch.times, Conditioning(batch.text))
        (output - batch.target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Contender("lorakit", run, sum(p.numel() for p in learner.parameters().values()))


def peft(model: DiffusersModel, kind: str) -> Contender:
    """peft's layers injected into a copy of the UNet."""
    import peft as library

    kinds = {"lora": library.LoraConfig, "loha": library.LoHaConfig, "lokr": library.LoKrConfig}
    names = {"lora": "lora_alpha"}
    config: Any = kinds[kind](r=RANK, target_modules=PEFT_TARGETS, **{names.get(kind, "alpha"): RANK})
    unet = copy.deepcopy(model.unet)
    library.inject_adapter_in_model(config, unet)
    return _plain("peft", unet, [p for p in unet.parameters() if p.requires_grad])


def lycoris(model: DiffusersModel, kind: str) -> Contender:
    """LyCORIS' layers applied to a copy of the UNet, its transformers only."""
    from lycoris import LycorisNetwork, create_lycoris

    unet = copy.deepcopy(model.unet)
    LycorisNetwork.apply_preset({"target_module": ["Transformer2DModel"]})
    network = create_lycoris(unet, 1.0, linear_dim=RANK, linear_alpha=RANK, algo=kind)
    network.apply_to()
    network.requires_grad_(True)
    return _plain("lycoris", unet, list(network.parameters()), network)


def _plain(name: str, unet: Any, parameters: list[Any], keep: object = None) -> Contender:
    optimizer = torch.optim.AdamW(parameters, foreach=True)

    def run(batch: Batch) -> None:
        assert keep is None or keep
        output = unet(batch.noisy, batch.times, encoder_hidden_states=batch.text, return_dict=False)[0]
        (output - batch.target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Contender(name, run, sum(p.numel() for p in parameters))


def measure(contenders: list[Contender], batch: Batch, rounds: int) -> dict[str, float]:
    """Median seconds of a step each; the first round of each is not counted."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    clock = time.perf_counter if batch.noisy.is_cuda else time.process_time  # a CPU's own time, whoever else is at work
    for turn in range(rounds + 1):
        for contender in contenders:
            with _settled(batch.noisy.device):
                began = clock()
                contender.run(batch)
                _wait(batch.noisy.device)
                if turn:
                    seconds[contender.name].append(clock() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextmanager
def _settled(device: torch.device) -> Iterator[None]:
    _wait(device)
    yield


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=None)
    parser.add_argument("--types", default="lora,loha,lokr")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=tuple(DTYPES))
    args = parser.parse_args()
    model = load_checkpoint(args.checkpoint or checkpoint_path(), DTYPES[args.dtype], args.device)
    random = torch.Generator().manual_seed(0)
    size = (args.batch, 4, args.side // 8, args.side // 8)
    width = model.encode_text(["a"]).states.shape[-1]

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(args.device, DTYPES[args.dtype])

    times = torch.randint(0, 1000, (args.batch,), generator=random).to(args.device)
    batch = Batch(draw(*size), times, draw(args.batch, 77, width), draw(*size))
    print(f"{args.side} px, batch {args.batch}, {args.dtype}, {args.device}, torch {torch.__version__}, rank {RANK}")
    print(f"{'type':6} {'by':10} {'values':>9} {'ms':>8} {'ratio':>6}")
    for kind in args.types.split(","):
        with frozen(model, checkpointing=False), ExitStack() as stack:
            contenders = [peft(model, kind), lycoris(model, kind), ours(model, kind, stack)]
            found = measure(contenders, batch, args.rounds)
        for contender in contenders:
            spent = found[contender.name]
            print(
                f"{kind:6} {contender.name:10} {contender.count:9} {spent * 1000:8.1f} "
                f"{spent / found[contenders[0].name]:6.2f}"
            )


if __name__ == "__main__":
    main()
