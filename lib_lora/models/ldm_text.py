"""The text encoders that ldm and sgm hold, as `TextTower`s: transformers' CLIP and OpenCLIP's, to the webui's numbers.

The modules are run directly, past the wrappers that the webui puts round them: those read its own syntax and its own
embeddings into a prompt, and know no gradients of ours.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.keys import versions
from lib_lora.models.ldm_layers import HF, embedders, kind_of, unwrapped
from lib_lora.models.precision import WIDE, compute_dtype, device_of, precision
from lib_lora.models.text import TextTower

OPEN_CLIP_PAD = 0


def towers_of(model: Any, version: str, clip_skip: Callable[[], int]) -> tuple[TextTower, ...]:
    """The towers of a live model, first te1, then SDXL's te2. `clip_skip()` is the model's own choice, 0: what it says.

    As in the webui that choice concerns transformers' CLIP only.
    """
    make = {HF: partial(_hf_tower, xl=version == versions.SDXL, clip_skip=clip_skip)}
    found = [(embedder, kind_of(embedder)) for embedder in embedders(model)]
    pairs = zip(("te1", "te2"), [(embedder, kind) for embedder, kind in found if kind])
    return tuple(make.get(str(kind), _open_clip_tower)(part, embedder) for part, (embedder, kind) in pairs)


def _hf_tower(part: str, embedder: Any, *, xl: bool, clip_skip: Callable[[], int]) -> TextTower:
    tokenizer = embedder.tokenizer
    wrapper = embedder.transformer.text_model.embeddings.token_embedding

    def run(ids: Tensor, skip: int) -> tuple[Tensor, None]:
        _forget(wrapper)
        depth = len(embedder.transformer.text_model.encoder.layers)
        own = _sgm_layer(embedder, depth) if xl else 1
        return _hf_states(embedder.transformer, ids, skip or clip_skip() or own, normed=not xl), None

    return TextTower(
        part,
        unwrapped(wrapper),
        lambda text: list(tokenizer([text], truncation=False, add_special_tokens=False)["input_ids"][0]),
        run,
        start=tokenizer.bos_token_id,
        end=tokenizer.eos_token_id,
        pad=tokenizer.eos_token_id,
    )


def _sgm_layer(embedder: Any, depth: int) -> int:
    """Which hidden state sgm's FrozenCLIPEmbedder gives, counted from the end; 0 stands for the normed last one."""
    if getattr(embedder, "layer", "last") != "hidden":
        return 0
    index = int(embedder.layer_idx)  # among depth + 1 states: the embeddings come first
    return depth + 1 - index if index >= 0 else -index


def _hf_states(transformer: Any, ids: Tensor, skip: int, *, normed: bool) -> Tensor:
    """Hidden states `skip` from the end, through the last norm if `normed`; skip 0: the last ones, normed."""
    with precision(transformer):
        out = transformer(input_ids=ids.to(device_of(transformer)), output_hidden_states=skip > 0)
        if skip == 0 or (skip == 1 and normed):
            return _wide(out.last_hidden_state)
        states = _from_end(out.hidden_states, skip)
        return _wide(transformer.text_model.final_layer_norm(states) if normed else states)


def _open_clip_tower(part: str, embedder: Any) -> TextTower:
    words: Any = importlib.import_module("open_clip.tokenizer")._tokenizer
    wrapper = embedder.model.token_embedding

    def run(ids: Tensor, skip: int) -> tuple[Tensor, Tensor | None]:
        _forget(wrapper)
        # sgm's second class keeps the states as they leave a block (legacy = False), ldm's and the first norm them.
        pooled = bool(getattr(embedder, "return_pooled", False))
        skip = skip or int(embedder.layer_idx) + 1
        return _open_clip_states(embedder.model, ids, skip, pooled=pooled)

    return TextTower(part, unwrapped(wrapper), words.encode, run, pad=OPEN_CLIP_PAD)


def _open_clip_states(tower: Any, ids: Tensor, skip: int, *, pooled: bool) -> tuple[Tensor, Tensor | None]:
    """States `skip` blocks from the end. With `pooled` as they are, and the last ones' projection where the end is."""
    ids = ids.to(device_of(tower))
    with precision(tower):
        states = _after_blocks(tower, ids)
        chosen = _from_end(states, skip)
        if not pooled:
            return _wide(tower.ln_final(chosen)), None
        ends = tower.ln_final(states[-1])[torch.arange(len(ids), device=ids.device), ids.argmax(dim=-1)]
        return _wide(chosen), _wide(ends @ tower.text_projection)


def _after_blocks(tower: Any, ids: Tensor) -> list[Tensor]:
    """What goes into the first of OpenCLIP's blocks, and what comes out of each, (batch, 77, width)."""
    x = (tower.token_embedding(ids) + tower.positional_embedding).to(compute_dtype(tower))
    states = [x]
    for block in tower.transformer.resblocks:
        if block.attn.batch_first:
            x = block(x, attn_mask=tower.attn_mask)
        else:
            x = block(x.transpose(0, 1), attn_mask=tower.attn_mask).transpose(0, 1)
        states.append(x)
    return states


def _from_end(states: Sequence[Tensor], skip: int) -> Tensor:
    if skip >= len(states):
        raise BadConfig(f"clip_skip {skip} is more than the text encoder's {len(states) - 1} layers; use a smaller one")
    return states[-skip]


def _forget(wrapper: nn.Module) -> None:
    """Leave no embedding of the webui's over: it puts those of a prompt down here for its next call, which is ours now.

    Only a picture that ended with an error between the two leaves any.
    """
    owner = getattr(wrapper, "embeddings", None)
    if getattr(owner, "fixes", None) is not None:
        owner.fixes = None  # type: ignore[union-attr]


def _wide(states: Tensor) -> Tensor:
    return states if states.dtype in WIDE else states.float()
