"""The sum itself, on weights large enough to be summed in parts."""

from __future__ import annotations

import pytest
import torch

from lib_lora.networks.base import Layer
from lib_lora.patch.merge import CHUNK, Share, merged
from lib_lora.patch.overflow import peak
from tests.patch.bare import Shift, bits, expected, random_lora

SHAPES = [(700, 500), (64, 64, 3, 3), (130, 300, 3, 3), (3, CHUNK + 7)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_rounding_of_the_exact_sum(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    base = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    one, two = random_lora(shape, 4, 1), random_lora(shape, 3, 2)
    both: list[tuple[Layer, float]] = [(one, 0.3), (two, -0.2)]
    more: list[tuple[Layer, float]] = [*both, (Shift(0.25, weight=True), 0.1)]
    for given in (both[:1], both, more):
        kept = base.clone()
        got = merged(base, [Share(layer, strength) for layer, strength in given])
        want = expected(base, given)
        step = torch.finfo(dtype).eps * want.abs().clamp(min=2.0**-6)  # 8 bits have no finer steps than at 2 ** -6
        unit = 8 if dtype in (torch.float32, torch.float64) else 0.501
        assert got.dtype == dtype and ((got.double() - want).abs() <= step * unit + 2e-6 * (dtype.itemsize < 8)).all()
        assert torch.equal(bits(base), bits(kept))
        out = torch.empty_like(base)
        assert merged(base, [Share(layer, strength) for layer, strength in given], out=out) is out
        assert torch.equal(bits(out), bits(got))


@pytest.mark.parametrize("numbers", [8, 2 * CHUNK + 4])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_the_peak_tells_of_every_number(numbers: int, bad: float) -> None:
    good = torch.randn(numbers).half().view(4, -1)
    assert peak(good).isfinite()
    for place in (0, 3, CHUNK - 1, CHUNK, numbers - 1):
        data = good.clone()
        data.view(-1)[min(place, numbers - 1)] = bad
        assert not peak(data).isfinite()
