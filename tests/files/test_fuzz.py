"""Damaged files of every dialect and type: read or refused by name, no crash, and the model comes back bit for bit.

`python -m benchmarks.fuzz` does the same for as long as one likes.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.files.corpus import FORMS, Seed, broken, corpus, damaged, outcome

SEEDS = corpus()
VOCABULARY = sorted({name for seed in SEEDS.values() for name in seed.tensors})
FUZZ = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
names = st.sampled_from(sorted(SEEDS))
randoms = st.randoms(use_true_random=False)
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
strengths = st.sampled_from([1.0, -0.7, 0.5])


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_the_undamaged_files_are_applied(tmp_path: Path, name: str) -> None:
    """Else the others would prove nothing."""
    assert outcome(SEEDS[name].write(tmp_path), torch.float32, 1.0) == "applied"


@pytest.mark.parametrize("number", [1e7, 1e20, 3e38, -3e38, float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_that_would_overflow_are_refused(tmp_path: Path, number: float, dtype: torch.dtype) -> None:
    """Found by fuzzing: finite numbers, whose products were not."""
    for name in ("type: lora", "type: lokr", "type: oft", "type: boft", "bundle"):
        tensors = SEEDS[name].tensors
        endings = {key.partition(".")[2] for key in tensors}
        for ending in endings - ({"alpha"} if name == "type: lokr" else set()):  # of whole factors it means nothing
            chosen = next(key for key in tensors if key.endswith(ending))
            bad = tensors[chosen].to(dtype).clone()
            bad.view(-1)[-1] = number
            path = Seed({**tensors, chosen: bad}).write(tmp_path)
            assert outcome(path, torch.float32, 1.0) == "BadFile"


def test_large_numbers_that_do_not_overflow_are_applied(tmp_path: Path) -> None:
    tensors = {name: t * 60_000 if t.numel() > 1 else t for name, t in SEEDS["type: lora"].tensors.items()}
    assert outcome(Seed(tensors).write(tmp_path), torch.float32, 1.0) == "applied"


def test_a_start_of_another_shape_is_no_layer(tmp_path: Path) -> None:
    """Found by fuzzing: T-LoRA's factors at the start, of the right rank but not of the right width."""
    tensors = SEEDS["type: tlora"].tensors
    for ending, shape in (("base_q.weight", (2, 0)), ("base_q.weight", (2, 5)), ("base_p.weight", (1, 2))):
        chosen = next(key for key in tensors if key.endswith(ending))
        assert outcome(Seed({**tensors, chosen: torch.ones(shape)}).write(tmp_path), torch.float32, 1.0) == "applied"


@given(name=names, rng=randoms, dtype=dtypes, strength=strengths)
@FUZZ
def test_damaged_tensors(tmp_path: Path, name: str, rng: random.Random, dtype: torch.dtype, strength: float) -> None:
    outcome(damaged(SEEDS[name], rng, VOCABULARY).write(tmp_path), dtype, strength)


@given(name=names, form=st.sampled_from(FORMS), rng=randoms)
@FUZZ
def test_damaged_bytes(tmp_path: Path, name: str, form: str, rng: random.Random) -> None:
    seed = SEEDS[name]
    path = Seed(seed.tensors, seed.metadata, form, seed.as_list).write(tmp_path)
    path.write_bytes(broken(path.read_bytes(), rng))
    outcome(path, torch.float32, 1.0)


@given(content=st.binary(max_size=300), suffix=st.sampled_from([".safetensors", ".pt"]))
@FUZZ
def test_any_bytes(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    for start in (b"", b"PK\x03\x04", b"\x80\x02", b"\x40\0\0\0\0\0\0\0{"):
        path.write_bytes(start + content)
        assert outcome(path, torch.float32, 1.0) == "BadFile"
