"""From prompts to text states: windows of 75 tokens, emphasis, and words with vectors of their own.

All that does not depend on the classes a text encoder is made of; those are behind `TextTower.run`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig, ShapeMismatch
from lib_lora.models import emphasis
from lib_lora.ports import PLAIN_TEXT, Conditioning, TextOptions

LENGTH = 75  # tokens of a window, without its start and end
# As the webui does by default (its "comma padding backtrack"), a full window breaks at a comma this near to its end.
COMMA_REACH = 20
# What stands in the place of a word's vectors: any legal id below the end's, as encoders pool where the id is highest.
PLACEHOLDER = 0
Vectors = Mapping[str, Mapping[str, Tensor]]  # {word: {part: (tokens, width)}}


@dataclass(frozen=True)
class TextTower:
    """One text encoder. `part` is "te1" or "te2".

    `embedding` turns ids into vectors, and its output is what `run` goes on with. `tokenize(text)` gives the ids
    without start and end. `run(ids, clip_skip)` takes ids (n, 77) int64 on the CPU and gives states (n, 77, width) and,
    where the UNet wants them, pooled ones (n, width); `clip_skip` 0 is the model's own choice.
    """

    part: str
    embedding: nn.Module = field(repr=False)
    tokenize: Callable[[str], list[int]] = field(repr=False)
    run: Callable[[Tensor, int], tuple[Tensor, Tensor | None]] = field(repr=False)
    start: int = 49406
    end: int = 49407
    pad: int = 49407  # SD1 and SDXL's first encoder pad with the end; OpenCLIP's towers with 0
    comma: int = 267  # ",</w>" in CLIP's vocabulary

    def vectors(self, ids: Sequence[int]) -> Tensor:
        """The input embeddings (len(ids), width), a copy without gradient."""
        parameter = next(self.embedding.parameters())
        with torch.no_grad():
            got = self.embedding(torch.tensor([list(ids)], dtype=torch.long, device=parameter.device))
        return got[0].clone()


@dataclass(frozen=True)
class Unit:
    """What is never torn apart: a token, or the placeholders of a word with vectors of its own."""

    ids: tuple[int, ...]
    weight: float = 1.0
    word: str | None = None


Window = list[Unit]


class TextReader:
    """Reads prompts with one text encoder, or with SDXL's two, whose states are joined on the width axis.

    The pooled states are those of the last tower's first window, as in the webui.
    """

    def __init__(self, towers: Sequence[TextTower]) -> None:
        self.towers = tuple(towers)
        self._extra: dict[str, Mapping[str, Tensor]] = {}

    def encode(self, prompts: Sequence[str], options: TextOptions = PLAIN_TEXT) -> Conditioning:
        """See `ports.DiffusionModel.encode_text`. Of every prompt exactly `options.windows` windows are made.

        A shorter prompt has empty windows at its end, a longer one is cut. Raises BadConfig for unusable options.
        """
        if options.windows < 1 or options.clip_skip < 0:
            raise BadConfig(f"{options} cannot be used: windows begin at 1 and clip_skip at 0")
        states, pooled = [], None
        for tower in self.towers:
            here, pooled = self._states(tower, prompts, options)
            states.append(here)
        return Conditioning(states[0] if len(states) == 1 else torch.cat(states, dim=-1), pooled)

    def token_vectors(self, text: str) -> dict[str, Tensor]:
        """See `ports.DiffusionModel.token_vectors`."""
        return {tower.part: tower.vectors(tower.tokenize(text)) for tower in self.towers}

    @contextmanager
    def extra_tokens(self, vectors: Vectors) -> Iterator[None]:
        """See `ports.DiffusionModel.extra_tokens`. Words are told apart regardless of case, as CLIP's tokens are.

        A word is found in the text, not among the tokens: it counts where no letter or digit touches one of its own at
        either end, so `sks` is not in `sksy`, and `<cat>` is in `<cat>, sitting`. Of several the longest is taken.
        Raises BadConfig or ShapeMismatch for vectors that no encoder here can read.
        """
        self._check(vectors)
        before = self._extra
        self._extra = {**before, **{word.lower(): by_part for word, by_part in vectors.items()}}
        try:
            yield
        finally:
            self._extra = before

    def _check(self, vectors: Vectors) -> None:
        widths = {tower.part: tower.vectors([PLACEHOLDER]).shape[-1] for tower in self.towers}
        for word, by_part in vectors.items():
            if not word.strip() or word != word.strip():
                raise BadConfig(f"{word!r} is no word: it is empty or has blanks at its ends; name it otherwise")
            if missing := sorted(widths.keys() - by_part.keys()):
                raise BadConfig(f"the word {word!r} has no vectors for {', '.join(missing)}; give one for each encoder")
            shapes = {part: tuple(by_part[part].shape) for part in widths}
            wrong = {part: shape for part, shape in shapes.items() if len(shape) != 2 or shape[1] != widths[part]}
            if wrong:
                raise ShapeMismatch(f"the vectors of {word!r} are {wrong}, this model needs (n, width) with {widths}")
            counts = {shape[0] for shape in shapes.values()}
            if len(counts) != 1 or not 1 <= min(counts) <= LENGTH:
                raise BadConfig(f"the word {word!r} has {sorted(counts)} vectors; use one number from 1 to {LENGTH}")

    def _states(self, tower: TextTower, prompts: Sequence[str], options: TextOptions) -> tuple[Tensor, Tensor | None]:
        """States (batch, 77 * windows, width) of one tower, and its pooled ones of the first windows."""
        rows = self.windows(tower, prompts, options)
        with _swapped(tower, self._places(tower, rows)):
            states, pooled = tower.run(token_ids(tower, rows), options.clip_skip)
        if options.weights:
            states = emphasis.apply(states, _weights(rows))
        states = states.reshape(len(prompts), -1, states.shape[-1])  # windows one behind the other
        return states, None if pooled is None else pooled[:: options.windows]

    def windows(self, tower: TextTower, prompts: Sequence[str], options: TextOptions) -> list[Window]:
        """The windows of all prompts one behind the other, `options.windows` for each prompt."""
        rows: list[Window] = []
        for prompt in prompts:
            rows += windows_of(self._units(tower, prompt, options.weights), options.windows, tower.comma)
        return rows

    def _units(self, tower: TextTower, prompt: str, weights: bool) -> Iterator[Unit | None]:
        """The units of a prompt; None ends a window."""
        for piece in emphasis.pieces_of(prompt) if weights else [emphasis.Piece(prompt)]:
            for text, word in split_words(piece.text, self._extra):
                if word is not None:
                    count = len(self._extra[word][tower.part])
                    yield Unit((PLACEHOLDER,) * count, piece.weight, word)
                elif text.strip():
                    yield from (Unit((token,), piece.weight) for token in tower.tokenize(text))
            if piece.ends:
                yield None

    def _places(self, tower: TextTower, rows: Sequence[Window]) -> list[tuple[int, int, Tensor]]:
        """(row, position behind the start token, vectors) of every word with vectors."""
        found = []
        for row, window in enumerate(rows):
            position = 1
            for unit in window:
                if unit.word is not None:
                    found.append((row, position, self._extra[unit.word][tower.part]))
                position += len(unit.ids)
        return found


def split_words(text: str, words: Mapping[str, object]) -> Iterator[tuple[str, str | None]]:
    """`(text, None)` for what lies between, and `(as written, word)` for each of `words` (lower case), in order."""
    position = 0
    if words:
        anyone = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
        # An empty look-behind costs nothing; letters and digits only, so that "_" and "-" separate as CLIP has it.
        alone = re.compile(rf"(?:(?<![^\W_])|(?=[\W_]))(?:{anyone})(?:(?![^\W_])|(?<=[\W_]))", re.IGNORECASE)
        for match in alone.finditer(text):
            yield text[position : match.start()], None
            yield match.group(0), match.group(0).lower()
            position = match.end()
    yield text[position:], None


def windows_of(units: Iterator[Unit | None], count: int, comma: int) -> list[Window]:
    """Exactly `count` windows of at most 75 tokens; what does not fit into the last is left out.

    A window that is full breaks behind the last comma of its last 20 tokens, so that a phrase stays whole, but only
    where another window follows to take the rest.
    """
    done: list[Window] = []
    now: Window = []
    for unit in units:
        if unit is not None and _length(now) + len(unit.ids) <= LENGTH:
            now.append(unit)
            continue
        if len(done) + 1 == count:
            break
        rest: Window = []
        if unit is not None and unit.ids != (comma,) and _length(now) == LENGTH:
            now, rest = _at_comma(now, comma)
        done.append(now)
        now = rest if unit is None else [*rest, unit]
    done.append(now)
    return done + [[] for _ in range(count - len(done))]


def _length(window: Window) -> int:
    return sum(len(unit.ids) for unit in window)


def _at_comma(window: Window, comma: int) -> tuple[Window, Window]:
    """A full window up to its last comma, and what is behind it; the whole of it where no comma is near the end."""
    for i in range(len(window) - 1, -1, -1):
        if window[i].ids == (comma,):
            behind = _length(window[i:])
            return (window[: i + 1], window[i + 1 :]) if behind <= COMMA_REACH else (window, [])
    return window, []


def token_ids(tower: TextTower, rows: Sequence[Window]) -> Tensor:
    """What the encoder is given, (rows, 77) int64: start, tokens, end, padding."""
    full = []
    for window in rows:
        ids = [tower.start, *(token for unit in window for token in unit.ids), tower.end]
        full.append(ids + [tower.pad] * (LENGTH + 2 - len(ids)))
    return torch.tensor(full, dtype=torch.long)


def _weights(rows: Sequence[Window]) -> Tensor:
    """(rows, 77) float32: the weight of each token; 1 for start, end and padding."""
    weights = torch.ones(len(rows), LENGTH + 2, dtype=torch.float64)
    for row, window in enumerate(rows):
        flat = [unit.weight for unit in window for _ in unit.ids]
        weights[row, 1 : 1 + len(flat)] = torch.tensor(flat, dtype=torch.float64)
    return weights.float()


@contextmanager
def _swapped(tower: TextTower, places: Sequence[tuple[int, int, Tensor]]) -> Iterator[None]:
    """In here the embedding gives, at `places`, their vectors instead of the placeholders', differentiably."""
    if not places:
        yield
        return
    rows = torch.tensor([row for row, _, vectors in places for _ in range(len(vectors))])
    columns = torch.tensor([column + i for _, column, vectors in places for i in range(len(vectors))])

    def swap(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        vectors = torch.cat([vectors.to(output.device, output.dtype) for _, _, vectors in places])
        return output.index_put((rows.to(output.device), columns.to(output.device)), vectors)

    handle = tower.embedding.register_forward_hook(swap)
    try:
        yield
    finally:
        handle.remove()
