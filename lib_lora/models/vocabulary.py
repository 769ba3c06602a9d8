"""How CLIP reads words: byte-pair encoding (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909), no model loaded.

SD1, SD2 and SDXL read with the same vocabulary, so what is told here holds for each of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from lib_lora.errors import BadFile
from lib_lora.models.tokenizer import clip_alphabet, clip_merges

END = "</w>"
# Letters, single digits, runs of other signs, and the endings of English verbs, as CLIP takes a text apart
_PARTS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+|[^\s]")


@dataclass(frozen=True)
class Token:
    """One token: its id, its letters, and whether a word ends with it.

    Tokens were made in the order of how often their letters stood together, so a high id is a rare piece of text.
    """

    id: int
    letters: str
    ends: bool


class Vocabulary:
    """CLIP's vocabulary, made of its merges ("l o" first, as the file lists them)."""

    def __init__(self, merges: Sequence[str]) -> None:
        alphabet = clip_alphabet()
        self._letters: Mapping[int, str] = dict(zip(_byte_order(), alphabet, strict=True))
        pairs = [tuple(line.split()) for line in merges if line.strip()]
        self._ranks: Mapping[tuple[str, ...], int] = {pair: rank for rank, pair in enumerate(pairs)}
        pieces = [*alphabet, *(sign + END for sign in alphabet), *("".join(pair) for pair in pairs)]
        self._ids: Mapping[str, int] = {piece: number for number, piece in enumerate(pieces)}
        self._bytes: Mapping[str, int] = {sign: code for code, sign in self._letters.items()}

    def __len__(self) -> int:
        return len(self._ids)

    def tokens(self, text: str) -> list[Token]:
        """The tokens of a text, in either case the same; no token for spaces, none for beginning and end."""
        words = _PARTS.findall(" ".join(text.lower().split()))
        return [self._token(piece) for word in words for piece in self._split(word)]

    def _split(self, word: str) -> list[str]:
        """The pieces of one word: neighbours are merged, the pair that comes first in the list first."""
        signs = [self._letters[code] for code in word.encode("utf-8")]
        parts = [*signs[:-1], signs[-1] + END]
        while len(parts) > 1:
            ranked = [(self._ranks.get(pair, len(self._ids)), pair) for pair in pairwise(parts)]
            rank, best = min(ranked)
            if rank == len(self._ids):
                break
            parts = _merged(parts, best)
        return parts

    def _token(self, piece: str) -> Token:
        ends = piece.endswith(END)
        data = bytes(self._bytes[sign] for sign in piece.removesuffix(END))
        return Token(self._ids[piece], data.decode("utf-8", errors="replace"), ends)


def packaged_vocabulary() -> Vocabulary:
    """The vocabulary that the package open_clip (or clip) carries. Raises BadFile where neither is installed."""
    return Vocabulary(clip_merges())


def vocabulary_of(folder: Path) -> Vocabulary:
    """The vocabulary of a folder with vocab.json and merges.txt. Raises BadFile if they are not CLIP's."""
    try:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        known = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadFile(f"the tokenizer in {str(folder)!r} cannot be read ({error}); write it anew") from error
    made = Vocabulary([line for line in lines if not line.startswith("#version")])
    if not isinstance(known, dict) or any(known.get(piece) != number for piece, number in made._ids.items()):
        raise BadFile(f"the tokenizer in {str(folder)!r} is not CLIP's; its words cannot be judged by it")
    return made


def _merged(parts: Sequence[str], pair: Sequence[str]) -> list[str]:
    """The parts with every occurrence of the pair made one."""
    out: list[str] = []
    place = 0
    while place < len(parts):
        width = 2 if tuple(parts[place : place + 2]) == tuple(pair) else 1
        out.append("".join(parts[place : place + width]))
        place += width
    return out


def _byte_order() -> list[int]:
    """The 256 bytes in the order of CLIP's alphabet: printable ones first."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return plain + [code for code in range(256) if code not in plain]
