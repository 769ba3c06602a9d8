"""Two processes under `accelerate launch` train what one does at twice the batch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lib_lora.train.config import JobConfig, dump_job
from lib_lora.train.jobs import Run
from lib_lora.train.processes import Processes

# `--multi_gpu` is what starts several processes on one machine; on which device they work is the program's choice.
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")


def run(job: JobConfig, folder: Path, name: str, *launcher: str) -> dict[str, torch.Tensor]:
    """Train the job by the command line; the network's tensors."""
    path = folder / f"{name}.toml"
    path.write_text(dump_job(job), encoding="utf-8")
    command = [sys.executable, *launcher, "-m", "lib_lora", "train", str(path), "--device", "cpu"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(str(folder / name / job.output.name / f"{job.output.name}.safetensors"))


# Plain gradient descent moves as far as gradients differ. AdamW divides each by its own size: what rounding (sums over
# a batch of two, or two of one) leaves of the smallest gradients is as large as any other step there: lr, at worst.
@pytest.mark.parametrize(
    ("optimizer", "lr", "bound", "cache"), [("sgd", 1.0, 1e-5, "ram"), ("adamw", 1e-4, 2e-5, "disk")]
)
def test_two_processes_equal_one_at_twice_the_batch(
    make: Callable[..., JobConfig],
    tiny_checkpoint: Path,
    tmp_path: Path,
    optimizer: str,
    lr: float,
    bound: float,
    cache: str,
) -> None:
    shared = {
        "base__checkpoint": str(tiny_checkpoint), "training__steps": 3, "network__train_text_encoder": True,
        "data__flip": True, "data__repeats": 2, "training__accumulation": 2, "data__resolution": 128,
        "optimizer__name": optimizer, "optimizer__lr": lr, "optimizer__te_lr": lr,
        "data__cache": cache,
    }  # fmt: skip
    one = run(make(**shared, training__batch_size=2, output__folder=str(tmp_path / "one")), tmp_path, "one")
    pair = make(**shared, training__batch_size=1, output__folder=str(tmp_path / "two"))
    two = run(pair, tmp_path, "two", *LAUNCH)
    assert one.keys() == two.keys()
    moved = max(float(one[name].abs().max()) for name in one if "lora_up" in name)
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    print(f"{optimizer}: two processes {apart:.1e} from one, moved by {moved:.1e}")
    assert apart < bound < moved / 10
    events = Run.open(tmp_path / "two" / "toy").events()  # of the first process alone
    assert next(event["processes"] for event in events if event["type"] == "started") == 2
    assert [event["step"] for event in events if event["type"] == "step"] == [1, 2, 3]
    assert len(list((tmp_path / "two").iterdir())) == 1
    kept = [sorted(path.name for path in (tmp_path / which / "toy").rglob("latents/*")) for which in ("one", "two")]
    assert kept[0] == kept[1] and bool(kept[0]) == (cache == "disk")


def test_one_process_adds_up_nothing() -> None:
    given = torch.nn.Parameter(torch.zeros(2))
    total = torch.ones(())
    alone = Processes()
    assert alone.first and alone.add_up(total, [given]) is total and given.grad is None
    assert alone.any(True) and not alone.any(False) and alone.share("x") == "x"
