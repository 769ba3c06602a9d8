"""Text states are kept by wording, within a limit, and only while nobody trains the text encoder."""

from __future__ import annotations

import torch

from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.ports import PLAIN_TEXT, Conditioning, TextOptions
from lib_lora.train.text_states import TextStates


class Counting:
    """A model that counts what it is asked to encode."""

    def __init__(self, model: DiffusersModel) -> None:
        self.model, self.asked = model, list[tuple[str, ...]]()

    def encode_text(self, prompts: list[str], options: TextOptions = PLAIN_TEXT) -> Conditioning:
        self.asked.append(tuple(prompts))
        return self.model.encode_text(prompts, options)


def test_each_wording_is_encoded_once(tiny_model: DiffusersModel) -> None:
    model = Counting(tiny_model)
    texts = TextStates(model, PLAIN_TEXT, lambda: False)  # type: ignore[arg-type]
    got = texts.batch(["a, b", "b, a", "a, b"])
    texts.batch(["b, a"])
    assert model.asked == [("a, b",), ("b, a",)]
    want = tiny_model.encode_text(["a, b", "b, a", "a, b"])
    assert torch.allclose(got.states, want.states, atol=1e-5)
    assert not torch.equal(got.states[0], got.states[1]) and torch.equal(got.states[0], got.states[2])
    assert not got.states.requires_grad


def test_the_longest_unused_goes_first(tiny_model: DiffusersModel) -> None:
    model = Counting(tiny_model)
    size = tiny_model.encode_text(["a"]).states.numel() * 4
    texts = TextStates(model, PLAIN_TEXT, lambda: False, memory=2 * size)  # type: ignore[arg-type]
    for caption in ("a", "b", "a", "c", "a"):
        texts.batch([caption])
    assert [prompts[0] for prompts in model.asked] == ["a", "b", "c"]
    texts.batch(["b"])
    assert [prompts[0] for prompts in model.asked] == ["a", "b", "c", "b"]
    whole = texts.batch(["a", "b", "c", "d"])  # more than there is room for
    assert whole.states.shape[0] == 4
    assert len(texts._kept) == 2


def test_trained_encoders_are_asked_every_time_and_afterwards_anew(tiny_model: DiffusersModel) -> None:
    trained = [False]
    texts = TextStates(tiny_model, PLAIN_TEXT, lambda: trained[0])
    before = texts.batch(["a"]).states
    weight = tiny_model.text_encoder.get_input_embeddings().weight
    kept = weight.detach().clone()
    try:
        trained[0] = True
        weight.requires_grad_(True)
        during = texts.batch(["a"]).states
        assert during.requires_grad
        with torch.no_grad():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        trained[0] = False
        after = texts.batch(["a"]).states
        assert not after.requires_grad
        assert not torch.allclose(after, before, atol=1e-3)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
        weight.requires_grad_(False)
