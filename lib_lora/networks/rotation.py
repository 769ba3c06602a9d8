"""Block-diagonal rotations: Cayley's map of skew-symmetric blocks, and what OFT, BOFT and PEFT's forms do with it.

`R = (I + Q) (I - Q)^-1` is orthogonal for every skew-symmetric Q, and `R(-Q) = R(Q)^T`. Rotations are kept as
`R - I`: then Q = 0 changes nothing, to the last bit, and small rotations keep their digits.
OFT: https://arxiv.org/abs/2306.07280; butterflies, BOFT: https://arxiv.org/abs/2311.06243.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lib_lora.networks.checks import refuse


def skew(blocks: Tensor) -> Tensor:
    """`B - B^T` of blocks (..., b, b)."""
    return blocks - blocks.transpose(-1, -2)


def skew_of_upper(upper: Tensor, size: int) -> Tensor:
    """Skew-symmetric blocks (n, size, size) of their upper triangles (n, size * (size - 1) / 2), row by row."""
    rows, columns = torch.triu_indices(size, size, 1, device=upper.device)
    blocks = upper.new_zeros(upper.shape[0], size, size)
    return skew(blocks.index_put((torch.arange(upper.shape[0], device=upper.device)[:, None], rows, columns), upper))


def cayley(q: Tensor) -> Tensor:
    """`(I + Q) (I - Q)^-1 - I = 2 (I - Q)^-1 Q` of skew-symmetric blocks (..., b, b), float32 or wider."""
    return torch.linalg.solve(torch.eye(q.shape[-1], dtype=q.dtype, device=q.device) - q, 2 * q)


def neumann(q: Tensor, terms: int, halved: bool = True) -> Tensor:
    """Cayley's map as a series, less I: `2 Q + 2 Q^2 + ...` up to `Q^(terms - 1)`, the last one once if `halved`.

    Halving is peft's since 0.18, which also takes three terms as four; one and two terms are never halved.
    """
    highest = 3 if halved and terms == 3 else terms - 1
    change, power = torch.zeros_like(q), q
    for exponent in range(1, highest + 1):
        change = change + (1 if halved and exponent == highest > 2 else 2) * power
        power = power @ q
    return change


def on_rows(change: Tensor, weight: Tensor) -> Tensor:
    """`blockdiag(change) @ weight` for blocks (n, b, b) and a weight (n * b, columns)."""
    blocks, size, _ = change.shape
    return (change @ weight.reshape(blocks, size, -1)).reshape(weight.shape)


def on_columns(change: Tensor, weight: Tensor) -> Tensor:
    """`weight @ blockdiag(change)` for blocks (n, b, b) and a weight (rows, n * b)."""
    blocks, size, _ = change.shape
    return torch.einsum("ong,ngh->onh", weight.reshape(-1, blocks, size), change).reshape(weight.shape)


def butterfly(changes: Tensor, weight: Tensor, chunk: int) -> Tensor:
    """The product of stages on the rows of `weight`: stage i mixes rows that lie up to 2^i blocks apart.

    `changes` (stages, n, b, b) are rotations less I; `weight` is (n * b, columns). Stage i takes `2^(i + 1) * b / 2`
    rows as two halves of chunks of `chunk` rows and lays the halves' chunks side by side, in blocks of b rows.
    """
    size = changes.shape[-1]
    for stage, change in enumerate(changes):
        distance = 2**stage * (size // 2) // max(chunk, 1)
        split = (-1, 2, distance, chunk) if distance > 1 else (-1, 1, 1, size)
        rows = weight.reshape(*split, weight.shape[-1]).transpose(1, 2)  # (groups, distance, 2, chunk, columns)
        mixed = rows + on_rows(change, rows.reshape(weight.shape)).reshape(rows.shape)
        weight = mixed.transpose(1, 2).reshape(weight.shape)
    return weight


def check_butterfly(kind: str, tensors: Mapping[str, Tensor], blocks: Tensor) -> None:
    """Refuse blocks that are not (stages, n, b, b) with as many stages as n allows. Raises ShapeMismatch."""
    shape = tuple(blocks.shape)
    fits = len(shape) == 4 and 0 not in shape and shape[2] == shape[3] and shape[1] % 2 ** (shape[0] - 1) == 0
    if not fits or (shape[0] > 1 and shape[2] % 2):
        refuse(kind, tensors, "expected stages of square blocks (stages, n, b, b)")


def check_blocks(kind: str, tensors: Mapping[str, Tensor], blocks: Tensor) -> None:
    """Refuse blocks that are not (n, b, b). Raises ShapeMismatch."""
    shape = tuple(blocks.shape)
    if len(shape) != 3 or shape[1] != shape[2] or 0 in shape:
        refuse(kind, tensors, "expected square blocks (n, b, b)")


def divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return next(size for size in range(min(max(most, 1), number), 0, -1) if number % size == 0)
