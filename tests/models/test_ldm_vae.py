"""ldm's real autoencoder stored in halves: float32 results, and not a bit of it changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora.models import ldm_vae
from lib_lora.models.precision import compute_dtype, precision, stored_dtype
from tests.models import live

pytest.importorskip("ldm")


@pytest.fixture(scope="module")
def vae() -> Any:
    """Random, with activations beyond float16 behind its first layers, like SDXL's."""
    live.define_missing_ops()
    from ldm.models.autoencoder import AutoencoderKL

    shape: dict[str, Any] = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3}
    shape |= {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    torch.manual_seed(0)
    made = AutoencoderKL(shape, {"target": "torch.nn.Identity"}, embed_dim=4).eval().requires_grad_(False)
    for part in (made.encoder, made.decoder):
        part.conv_in.weight.mul_(3e5).clamp_(-6e4, 6e4)
    return made


PIXELS = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
LATENTS = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def _bits(vae: Any) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in vae.parameters()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_give_what_their_float32_copies_give(vae: Any, dtype: torch.dtype) -> None:
    stored = copy.deepcopy(vae).to(dtype)
    before, wide = _bits(stored), copy.deepcopy(stored).float()
    with torch.no_grad():
        posterior, picture = wide.encode(PIXELS), wide.decode(LATENTS)
        if dtype == torch.float16:
            assert not torch.isfinite(stored.encode(PIXELS.half()).mean).all(), "it does not overflow as it is"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moments, decoded = ldm_vae.encode(stored, PIXELS), ldm_vae.decode(stored, LATENTS)
    assert torch.equal(moments, torch.cat([posterior.mean, posterior.std], dim=1))
    assert torch.equal(decoded, picture) and torch.isfinite(moments).all()
    assert {p.dtype for p in stored.parameters()} == {dtype}
    assert all(torch.equal(a, b) for a, b in zip(before, stored.parameters(), strict=True))


def test_an_error_leaves_it_as_it_was(vae: Any) -> None:
    stored = copy.deepcopy(vae).half()
    before, owners = _bits(stored), list(stored.parameters())
    with pytest.raises(RuntimeError):
        ldm_vae.encode(stored, PIXELS[:, :2])
    assert all(a is b for a, b in zip(owners, stored.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, stored.parameters(), strict=True))


def test_wider_formats_stay(vae: Any) -> None:
    assert ldm_vae.encode(copy.deepcopy(vae).double(), PIXELS).dtype == torch.float64
    with torch.inference_mode():
        made = copy.deepcopy(vae)
    assert torch.equal(ldm_vae.encode(made, PIXELS), ldm_vae.encode(vae, PIXELS))


def test_formats_of_live_modules() -> None:
    mixed = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).half()
    assert (stored_dtype(mixed), compute_dtype(mixed)) == (torch.float16, torch.bfloat16), "on a CPU"
    if hasattr(torch, "float8_e4m3fn"):
        mixed[0].to(torch.float8_e4m3fn)
        assert (stored_dtype(mixed), compute_dtype(mixed)) == (torch.float16, torch.bfloat16)
        assert stored_dtype(nn.Linear(2, 2).to(torch.float8_e4m3fn)) == torch.float16
    for dtype in (torch.float32, torch.float64):
        wide = nn.Linear(2, 2).to(dtype)
        assert stored_dtype(wide) == compute_dtype(wide) == dtype
        with precision(wide):
            assert not torch.is_autocast_enabled("cpu") and wide(torch.ones(1, 2, dtype=dtype)).dtype == dtype
    with precision(mixed):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
