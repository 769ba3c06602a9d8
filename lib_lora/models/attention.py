"""Attention kernels that training can go backward through, and which of them works here: found out by trying."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lib_lora.errors import BadConfig

log = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
CHOICES = ("auto", "sdpa", "xformers", "plain")
QUERIES, WORDS = 64, 77  # of the trial
TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of the largest value; float32 and wider: 1e-3


@dataclass(frozen=True)
class Trial:
    """What attention will be given: number of heads, channels of a head, number format, device."""

    heads: int
    head: int
    dtype: torch.dtype
    device: torch.device


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for (batch, heads, tokens, d), in float32 at least: SD2's products overflow halves."""
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        scores = q.to(wide) @ k.to(wide).transpose(-1, -2) * q.shape[-1] ** -0.5
        return (scores.softmax(dim=-1) @ v.to(wide)).to(q.dtype)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's scaled_dot_product_attention, which takes its fastest kernel for the shape."""
    return functional.scaled_dot_product_attention(q, k, v)


def xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """xformers' memory_efficient_attention; it wants tokens before heads."""
    ops: Any = importlib.import_module("xformers.ops")
    out = ops.memory_efficient_attention(*(t.transpose(1, 2).contiguous() for t in (q, k, v)))
    return out.transpose(1, 2)


KERNELS: dict[str, Attend] = {"sdpa": sdpa, "xformers": xformers, "plain": plain}


def choose(name: str, trials: Iterable[Trial]) -> tuple[str, Attend]:
    """The kernel called `name`, or for "auto" the first that passes all trials, with its name. Raises BadConfig."""
    if name not in CHOICES:
        raise BadConfig(f"base.attention = {name!r} is unknown; choose one of {', '.join(CHOICES)}")
    faults, wanted = [], tuple(dict.fromkeys(trials))
    for known in KERNELS if name == "auto" else [name]:
        failed = next(((trial, fault) for trial in wanted if (fault := fault_of(KERNELS[known], trial))), None)
        if failed is None:
            return known, KERNELS[known]
        trial, fault = failed
        faults.append(f"{known} for {trial.dtype} and heads of {trial.head} channels on {trial.device}: {fault}")
        log.info("attention does not work: %s", faults[-1])
    raise BadConfig(f"base.attention = {name!r} does not work here ({'; '.join(faults)}); set base.attention = 'auto'")


def fault_of(attend: Attend, trial: Trial) -> str | None:
    """What is wrong with a kernel's output or gradients on a small random trial; None if nothing is."""
    try:
        results = [_run(attend, trial, trial.dtype), _run(plain, trial, torch.float32)]
    except (ImportError, RuntimeError, NotImplementedError, ValueError, TypeError, AssertionError) as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    limit = tolerance(trial)
    for mine, true in zip(*results):
        if not bool(torch.isfinite(mine).all()):
            return "it gives NaN or infinity"
        difference = float((mine.float() - true).abs().max() / true.abs().max())
        if difference > limit:
            return f"it differs by {difference:.2g} from the plain formula"
    return None


def tolerance(trial: Trial) -> float:
    """How far from the plain formula a kernel may be: a GPU that is allowed TF32, as the webui does it, multiplies
    float32 with as many bits as float16 has."""
    tf32 = torch.backends.cuda.matmul.allow_tf32 and trial.device.type == "cuda" and trial.dtype == torch.float32
    return TOLERANCE.get(torch.float16 if tf32 else trial.dtype, 1e-3)


def _run(attend: Attend, trial: Trial, dtype: torch.dtype) -> list[Tensor]:
    """The output, and the three gradients of the sum of its squares, for random inputs rounded to the trial's dtype."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        made = [torch.randn(2, trial.heads, n, trial.head, generator=generator) for n in (QUERIES, WORDS, WORDS)]
        inputs = [t.to(trial.device, trial.dtype).float().requires_grad_() for t in made]
        out = attend(*(t.to(dtype) for t in inputs))
        out.float().square().sum().backward()
    return [out.detach(), *(t.grad for t in inputs if t.grad is not None)]
