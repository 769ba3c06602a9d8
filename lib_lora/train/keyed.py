"""Randomness by name: every draw has its own generator, keyed by what it is for, never the global one."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *what: int | str) -> torch.Generator:
    """A CPU generator that depends on `seed` and on `what` it is for, and on nothing else."""
    return torch.Generator("cpu").manual_seed(number(seed, *what))


def number(seed: int, *what: int | str) -> int:
    """A seed of its own for each thing, 0 to 2^63 - 1."""
    text = "/".join(str(part) for part in (seed, *what))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def coin(seed: int, *what: int | str) -> bool:
    """A fair coin."""
    return bool(torch.randint(2, (1,), generator=generator(seed, *what)).item())


def order(seed: int, epoch: int, count: int) -> list[int]:
    """The shuffled order in which an epoch visits `count` things."""
    return torch.randperm(count, generator=generator(seed, "order", epoch)).tolist()
