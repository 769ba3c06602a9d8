"""Captions as text states: kept while the text encoders stand still, computed each time while they are trained."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib_lora.ports import Conditioning, DiffusionModel, TextOptions

MEMORY = 256 * 2**20


class TextStates:
    """The text states of captions.

    What is kept is kept by the caption's final wording, so shuffled and shortened ones are right; the longest unused
    goes when `memory` bytes are full. It is kept in main memory, one caption encoded at a time: states then do not
    depend on which captions came together, and a resumed run gets the same ones.

    `trained()` is asked at every batch; what was kept before the encoders were trained is dropped.
    """

    def __init__(
        self, model: DiffusionModel, options: TextOptions, trained: Callable[[], bool], memory: int = MEMORY
    ) -> None:
        self._model, self._options, self._trained, self._memory = model, options, trained, memory
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()
        self._size = 0

    def batch(self, captions: Sequence[str]) -> Conditioning:
        """Text states (batch, tokens, width), differentiable if the text encoders are trained."""
        if self._trained():
            self._kept.clear()
            self._size = 0
            return self._model.encode_text(list(captions), self._options)
        found: dict[str, Conditioning] = {}
        for caption in captions:  # first all, then the limit: a batch may be larger than the memory
            if caption not in found:
                found[caption] = self._of(caption)
        while self._size > self._memory:
            self._size -= _bytes(self._kept.popitem(last=False)[1])
        return Conditioning.join([found[caption] for caption in captions], lambda rows: torch.stack(list(rows)))

    def _of(self, caption: str) -> Conditioning:
        kept = self._kept.get(caption)
        if kept is not None:
            self._kept.move_to_end(caption)
            return kept
        with torch.no_grad():
            states = self._model.encode_text([caption], self._options).map(lambda t: t[0].detach().cpu())
        self._kept[caption] = states
        self._size += _bytes(states)
        return states


def _bytes(states: Conditioning) -> int:
    tensors: list[Tensor] = [t for t in (states.states, states.pooled, states.time_ids) if t is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
