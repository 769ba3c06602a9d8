"""The attention kernels against the textbook's loop, and the choice among them by trial."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_lora.errors import BadConfig
from lib_lora.models import attention
from lib_lora.models.attention import KERNELS, TOLERANCE, Trial, choose, fault_of, plain, sdpa, tolerance

CPU = torch.device("cpu")
SMALL = Trial(2, 8, torch.float32, CPU)


def _textbook(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query at a time."""
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:-1])).tolist():
        b, h, i = place
        weights = torch.exp(k[b, h] @ q[b, h, i] / math.sqrt(q.shape[-1]))
        out[b, h, i] = (weights / weights.sum()) @ v[b, h]
    return out


def _inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, n, 8, generator=generator, dtype=torch.float64).to(dtype) for n in (5, 7, 7)]


@pytest.mark.parametrize("attend", [plain, sdpa])
def test_kernels_compute_attention(attend: attention.Attend) -> None:
    torch.testing.assert_close(attend(*_inputs()), _textbook(*_inputs()), rtol=1e-12, atol=1e-12)


def test_plain_does_not_overflow_halves() -> None:
    """SD2's products of queries and keys are beyond float16; so are sums of these."""
    q, k, v = _inputs(torch.float16)
    q, k = q * 300, k * 300
    assert torch.isinf(q @ k.transpose(-1, -2)).any()
    out = plain(q, k, v)
    assert out.dtype == torch.float16 and torch.isfinite(out).all()
    torch.testing.assert_close(out.double(), sdpa(q.double(), k.double(), v.double()), rtol=1e-3, atol=1e-3)


def test_autocast_does_not_narrow_plain() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = plain(*_inputs(torch.float32))
    torch.testing.assert_close(out.double(), _textbook(*_inputs()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_auto_takes_the_first_that_works(dtype: torch.dtype) -> None:
    assert choose("auto", [Trial(2, 8, dtype, CPU), Trial(2, 40, dtype, CPU)]) == ("sdpa", sdpa)
    assert choose("plain", [SMALL]) == ("plain", plain)
    assert choose("auto", []) == ("sdpa", sdpa)


def _no_backward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v).detach() + 0 * q


def _wrong_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(2 * q, k, v)


def _nan(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v) * float("nan")


def _not_here(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raise NotImplementedError("no operator for this head size\nlong story")


FAULTS = {_no_backward: "differs by", _wrong_scale: "differs by", _nan: "NaN", _not_here: "no operator for this head"}


@pytest.mark.parametrize("attend, words", FAULTS.items())
def test_what_does_not_work_is_found_out_and_passed_over(
    attend: attention.Attend, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = fault_of(attend, SMALL)
    assert fault is not None and words in fault and "\n" not in fault
    monkeypatch.setitem(KERNELS, "sdpa", attend)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    assert choose("auto", [SMALL]) == ("plain", plain)
    with pytest.raises(BadConfig, match=r"base.attention = 'sdpa' does not work here .*heads of 8.*set.*'auto'"):
        choose("sdpa", [SMALL])


def test_a_kernel_for_some_head_sizes_only_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "sdpa", lambda q, k, v: (_not_here if q.shape[-1] > 32 else sdpa)(q, k, v))
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    assert choose("auto", [SMALL])[0] == "sdpa"
    assert choose("auto", [SMALL, Trial(2, 40, torch.float32, CPU)])[0] == "plain"


def test_what_tf32_rounds_is_no_fault_of_a_kernel() -> None:
    gpu = Trial(2, 8, torch.float32, torch.device("cuda"))
    wide = Trial(2, 8, torch.float64, torch.device("cuda"))
    flags = torch.backends.cuda.matmul
    before = flags.allow_tf32
    try:
        flags.allow_tf32 = False
        assert tolerance(gpu) == tolerance(SMALL) == 1e-3
        flags.allow_tf32 = True
        assert tolerance(gpu) == TOLERANCE[torch.float16] and tolerance(SMALL) == tolerance(wide) == 1e-3
    finally:
        flags.allow_tf32 = before


def test_xformers_is_given_tokens_before_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def memory_efficient_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append((tuple(q.shape), q.is_contiguous()))
        return sdpa(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)

    ops: Any = ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    name, attend = choose("xformers", [SMALL])
    assert name == "xformers" and seen[0] == ((2, attention.QUERIES, 2, 8), True)
    torch.testing.assert_close(attend(*_inputs()), _textbook(*_inputs()))


def test_without_xformers_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(BadConfig, match="'xformers' does not work here"):
        choose("xformers", [SMALL])


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(BadConfig, match="'flash' is unknown; choose one of auto, sdpa, xformers, plain"):
        choose("flash", [SMALL])


def test_the_trial_runs_where_gradients_are_off() -> None:
    with torch.inference_mode():
        assert fault_of(sdpa, SMALL) is None
