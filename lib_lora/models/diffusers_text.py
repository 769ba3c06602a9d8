"""transformers' CLIP text models as `TextTower`s: SD1's, SD2's, and SDXL's two.

Which hidden states the UNet is given:

- SD1: the last, normed; with a clip skip of n the n-th from the end, normed.
- SD2: the penultimate, normed. transformers' copies of it end there, without the block that is never run, so their
  last states are a clip skip of 2, and 1 cannot be had.
- SDXL: the penultimate of both encoders, not normed, a clip skip of 2; and the second one's projection of its last,
  normed state at the end token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.keys import versions
from lib_lora.keys.layer_key import TE1, TE2
from lib_lora.models.text import TextTower

PENULTIMATE = 2
OPEN_CLIP_PAD = 0
Run = Callable[[Tensor, int], tuple[Tensor, Tensor | None]]


def text_root(text_encoder: nn.Module) -> nn.Module:
    """The module whose children are `embeddings`, `encoder`, `final_layer_norm`.

    transformers before 5 keeps it in `.text_model`; from 5 on the `CLIPTextModel` is that module itself.
    """
    inner = getattr(text_encoder, "text_model", None)
    return text_root(inner) if isinstance(inner, nn.Module) else text_encoder


def towers_of(model: Any) -> tuple[TextTower, ...]:
    """The towers of a DiffusersModel."""
    if model.version == versions.SDXL:
        first = _tower(TE1, model.text_encoder, model.tokenizer, _run_sdxl(model.text_encoder))
        return first, _tower(TE2, model.text_encoder_2, model.tokenizer_2, _run_sdxl(model.text_encoder_2))
    run = _run_sd2(model.text_encoder) if model.version == versions.SD2 else _run_sd1(model)
    return (_tower(TE1, model.text_encoder, model.tokenizer, run, open_clip=model.version == versions.SD2),)


def _tower(part: str, encoder: Any, tokenizer: Any, run: Run, *, open_clip: bool = False) -> TextTower:
    root: Any = text_root(encoder)

    def tokenize(text: str) -> list[int]:
        return list(tokenizer(text, truncation=False, add_special_tokens=False, verbose=False)["input_ids"])

    comma = tokenize(",")
    return TextTower(
        part,
        root.embeddings.token_embedding,
        tokenize,
        run,
        start=tokenizer.bos_token_id,
        end=tokenizer.eos_token_id,
        pad=OPEN_CLIP_PAD if open_clip or part == TE2 else tokenizer.eos_token_id,
        comma=comma[0],
    )


def _run_sd1(model: Any) -> Run:
    def run(ids: Tensor, skip: int) -> tuple[Tensor, None]:
        encoder = model.text_encoder
        skip = skip or model.clip_skip
        if skip <= 1:
            return encoder(_placed(ids, encoder)).last_hidden_state, None
        return _normed(encoder, ids, skip), None

    return run


def _run_sd2(encoder: Any) -> Run:
    def run(ids: Tensor, skip: int) -> tuple[Tensor, None]:
        skip = skip or PENULTIMATE
        if skip < PENULTIMATE:
            raise BadConfig(
                f"clip_skip {skip} asks SD2's text encoder for its last block, which diffusers' form of it leaves out; "
                "use 0 (its own choice) or at least 2"
            )
        if skip == PENULTIMATE:
            return encoder(_placed(ids, encoder)).last_hidden_state, None
        return _normed(encoder, ids, skip - 1), None

    return run


def _run_sdxl(encoder: Any) -> Run:
    def run(ids: Tensor, skip: int) -> tuple[Tensor, Tensor | None]:
        out = encoder(_placed(ids, encoder), output_hidden_states=True)
        states = _from_end(out.hidden_states, skip or PENULTIMATE)
        return states, getattr(out, "text_embeds", None)

    return run


def _normed(encoder: Any, ids: Tensor, skip: int) -> Tensor:
    states = encoder(_placed(ids, encoder), output_hidden_states=True).hidden_states
    root: Any = text_root(encoder)
    normed: Tensor = root.final_layer_norm(_from_end(states, skip))
    return normed


def _from_end(states: tuple[Tensor, ...], skip: int) -> Tensor:
    """The output of the block that is `skip`-th from the end; `states` begins with the embeddings."""
    if skip >= len(states):
        raise BadConfig(f"clip_skip {skip} is more than the text encoder's {len(states) - 1} layers; use a smaller one")
    return states[-skip]


def _placed(ids: Tensor, encoder: nn.Module) -> Tensor:
    return ids.to(next(encoder.parameters()).device)
