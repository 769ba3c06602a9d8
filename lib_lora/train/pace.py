"""How long a job will take: by what earlier runs of its kind took a step, or by a small table."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from lib_lora.errors import LoraError
from lib_lora.train.config import JobConfig
from lib_lora.train.jobs import EVENTS, Run, list_runs
from lib_lora.train.methods.registry import method_of
from lib_lora.train.wizard import Machine

LOOKED_AT = 12  # runs
TAIL = 1 << 16  # bytes of the events that are read
LEAST = 5  # steps a run must have to tell anything
FIXED_S = 0.02  # of every step, whatever is in it
# Seconds for one picture of 512 px, forward and backward: what peers' users report, rounded.
TABLE_S = {"small gpu": 0.45, "gpu": 0.25, "large gpu": 0.12, "cpu": 30.0}
VERSIONS = {"sd1": 1.0, "sd2": 1.1, "sdxl": 1.4}
SMALL, LARGE = 9e9, 22e9  # bytes of GPU memory, by which speed goes roughly
LOADING_S = 10.0  # before the first step


@dataclass(frozen=True)
class Pace:
    """Seconds of a step, and where the number comes from: `run` is an earlier run's name, else a table's.

    `alike`: the run had the same settings as far as they matter here, else the number was scaled.
    """

    step_s: float
    run: str = ""
    alike: bool = False

    def seconds(self, steps: int) -> float:
        """Of a whole run."""
        return LOADING_S + steps * self.step_s


def cost(job: JobConfig) -> float:
    """How much work a step is, in pictures of 512 px."""
    training = job.training
    pictures = training.batch_size * training.accumulation * (2 if job.prior.weight else 1)
    one = (job.data.resolution / 512) ** 2 * len(method_of(job.method.name).strengths)
    if training.checkpointing:
        one *= 1.3
    if job.network.train_text_encoder or job.network.train_text_encoder_2:
        one *= 1.1
    if job.data.cache == "none" or job.data.crop == "random" or job.data.colour:
        one *= 1.3  # every visit goes through the VAE
    if job.method.name == "slider":
        one *= 1 + job.method.slider_steps / 6  # drawing half of the way, on average, without gradients
    if job.method.name == "lcm":
        one *= 2
    return pictures * one


def pace_of(job: JobConfig, machine: Machine, share: float, runs: Path) -> Pace:
    """The pace by the newest run like this job in `runs`, or by the table; `share`: see `Estimator.share`."""
    for run in list_runs(runs)[:LOOKED_AT]:
        try:
            other = run.job()
        except LoraError:  # of another version of this program
            continue
        if (other.method.name, other.data.resolution) != (job.method.name, job.data.resolution):
            continue  # a base is known by its resolution, as far as that goes
        took = step_seconds(run)
        if took is not None:
            alike = abs(cost(other) - cost(job)) < 1e-9 and other.network.type == job.network.type
            return Pace(took if alike else FIXED_S + (took - FIXED_S) * cost(job) / cost(other), run.folder.name, alike)
    return Pace(FIXED_S + share * TABLE_S[_device(machine.memory)] * VERSIONS.get(machine.version, 1.0) * cost(job))


def step_seconds(run: Run) -> float | None:
    """The median of the last steps of a run, in seconds; None if it had too few."""
    path = run.folder / EVENTS
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    took = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # cut off
            continue
        if isinstance(event, dict) and event.get("type") == "step" and isinstance(event.get("step_s"), float):
            took.append(event["step_s"])
    return statistics.median(took[-50:]) if len(took) >= LEAST else None


def _device(memory: int | None) -> str:
    if memory is None:
        return "cpu"
    return "small gpu" if memory < SMALL else "gpu" if memory < LARGE else "large gpu"
