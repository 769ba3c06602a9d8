"""The webui's emphasis: `(word)`, `(word:1.2)`, `[word]`, `BREAK`, and what it does to text states."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

STEP = 1.1  # one pair of brackets
_SIGNS = re.compile(r"\\[()\[\]\\]|[()\[\]]|\\|:\s*(?P<number>[+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_MATES = {")": "(", "]": "["}


@dataclass
class Piece:
    """A stretch of a prompt of one weight. `ends` tells that the window ends behind it."""

    text: str
    weight: float = 1.0
    ends: bool = False


def pieces_of(prompt: str) -> list[Piece]:
    """The stretches of a prompt, in order, by the webui's grammar.

    `(x)` multiplies by 1.1, `[x]` divides by it, `(x:1.2)` multiplies by 1.2; brackets nest, and one that is never
    closed reaches to the end. A backslash takes the meaning from the bracket or backslash behind it, and is itself not
    read. `BREAK` begins a new window. A number that is none (`(x:1.2.3)`) is text.
    """
    found: list[Piece] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for match in _SIGNS.finditer(prompt):
        sign, number = match.group(0), _number(match["number"])
        if sign in opened:
            opened[sign].append(len(found))
        elif number is not None and opened["("]:
            _multiply(found[opened["("].pop() :], number)
        elif sign in _MATES and opened[_MATES[sign]]:
            _multiply(found[opened[_MATES[sign]].pop() :], STEP if sign == ")" else 1 / STEP)
        elif sign[0] == "\\":
            found.append(Piece(sign[1:]))
        else:
            found.extend(_broken(sign))
    for sign, starts in opened.items():
        for start in starts:
            _multiply(found[start:], STEP if sign == "(" else 1 / STEP)
    return list(_merged(found))


def apply(states: Tensor, weights: Tensor) -> Tensor:
    """States (rows, tokens, width) times `weights` (rows, tokens), with the mean of each row restored.

    z' = w z * mean(z) / mean(w z), the webui's "Original" emphasis. A row whose weights are all 1 stays as it is.
    """
    changed = (weights != 1).any(1)
    if not changed.any():
        return states
    weights = weights.to(states.device, states.dtype)
    scaled = states * weights[..., None]
    scaled = scaled * (states.mean((1, 2), keepdim=True) / scaled.mean((1, 2), keepdim=True))
    return scaled.where(changed.to(states.device)[:, None, None], states)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _multiply(pieces: list[Piece], factor: float) -> None:
    for piece in pieces:
        piece.weight *= factor


def _broken(text: str) -> Iterator[Piece]:
    """`text`, with a window's end at each BREAK."""
    *ended, last = _BREAK.split(text)
    yield from (Piece(part, ends=True) for part in ended)
    yield Piece(last)


def _merged(pieces: list[Piece]) -> Iterator[Piece]:
    """Neighbours of one weight in one, so that a word is not cut where a bracket was escaped."""
    before: Piece | None = None
    for piece in pieces:
        if not piece.text and not piece.ends:
            continue
        if before is not None and before.weight == piece.weight and not before.ends:
            before = Piece(before.text + piece.text, piece.weight, piece.ends)
        else:
            if before is not None:
                yield before
            before = piece
    yield before or Piece("")
