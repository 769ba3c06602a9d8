"""Pictures for the Train page: prompts with tags, on the model that is trained against, with any file as a network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib_lora.errors import LoraError, NetworkNotFound
from lib_lora.files.folders import Entry
from lib_lora.files.library import NetworkLibrary
from lib_lora.prompt import Moment, Presets, extract
from lib_lora.runtime import Runtime
from lib_lora.train.drawable import read_embedding


@dataclass(frozen=True)
class Drawing:
    """What to draw: one picture for each prompt, all of one seed, `side` pixels wide and high.

    `files` are networks beside the library's: {name in a tag: file}; `words` are embeddings: {word in a prompt: file}.
    """

    prompts: Sequence[str]
    seed: int
    steps: int
    cfg: float
    side: int
    negative: str = ""
    files: Mapping[str, Path] = field(default_factory=dict)
    words: Mapping[str, Path] = field(default_factory=dict)


class _Shelf:
    """A library with some files more, which go first."""

    def __init__(self, library: NetworkLibrary, files: Mapping[str, Path]) -> None:
        self._library, self._files = library, files

    def find(self, name: str) -> Entry:
        path = self._files.get(name)
        if path is None:
            return self._library.find(name)
        try:
            about = os.stat(path)
        except OSError as error:
            raise NetworkNotFound(f"the file {path.name!r} of {name!r} cannot be read ({error}); save again") from error
        return Entry(str(path), path.stem, path.stem, about.st_mtime_ns, about.st_size, about.st_ctime_ns)


def draw(model: Any, library: NetworkLibrary, drawing: Drawing, presets: Presets | None = None) -> list[Any]:
    """PIL pictures, in the order of the prompts. The model's weights are afterwards what they were.

    `model` is a DiffusionModel of which whoever calls has made sure that nobody else uses it, and that no network is
    applied. Raises LoraError for a tag that cannot be read, or a network that does not fit.
    """
    import torch

    runtime = Runtime(_Shelf(library, drawing.files))  # type: ignore[arg-type]
    try:
        with torch.no_grad():
            return [_one(model, runtime, drawing, prompt, presets) for prompt in drawing.prompts]
    finally:
        runtime.forget()


def _one(model: Any, runtime: Runtime, drawing: Drawing, prompt: str, presets: Presets | None) -> Any:
    from lib_lora.models.sample import SampleRequest, sample

    text, requests = extract(prompt, presets)
    request = SampleRequest(
        prompts=[text],
        negative=drawing.negative,
        seed=drawing.seed,
        steps=drawing.steps,
        cfg=drawing.cfg,
        width=drawing.side,
        height=drawing.side,
    )
    report = runtime.activate(model, requests, Moment(0, drawing.steps), drawing.seed)
    if report.errors:
        raise LoraError("; ".join(report.errors))
    own = {word: read_embedding(path) for word, path in drawing.words.items()}
    with runtime.words(model), model.extra_tokens(own):  # the files' go before the networks'
        return sample(model, request, on_step=runtime.stepper(model))[0]
