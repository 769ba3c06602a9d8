"""Prompts to text states: windows, words with vectors of their own, emphasis; against transformers' CLIP by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lib_lora.errors import BadConfig, ShapeMismatch
from lib_lora.models.diffusers_model import DiffusersModel, text_root
from lib_lora.models.text import COMMA_REACH, LENGTH, PLACEHOLDER, Unit, split_words, token_ids, windows_of
from lib_lora.ports import PLAIN_TEXT, TextOptions

START, END, COMMA, CAT, A = 49406, 49407, 267, 2368, 320
THREE = TextOptions(windows=3)


def rows_of(model: DiffusersModel, prompt: str, options: TextOptions) -> list[list[int]]:
    """The ids of each window, without start, end and padding."""
    tower = model.text.towers[0]
    ids = token_ids(tower, model.text.windows(tower, [prompt], options)).tolist()
    assert all(len(row) == LENGTH + 2 and row[0] == START and END in row for row in ids)
    ends = [row.index(END) for row in ids]
    assert all(set(row[end:]) == {END} for row, end in zip(ids, ends))
    return [row[1:end] for row, end in zip(ids, ends)]


def test_every_prompt_has_as_many_windows_as_asked(tiny_model: DiffusersModel) -> None:
    assert rows_of(tiny_model, "cat", THREE) == [[CAT], [], []]
    assert rows_of(tiny_model, "cat " * 100, THREE) == [[CAT] * 75, [CAT] * 25, []]
    assert rows_of(tiny_model, "cat " * 300, THREE) == [[CAT] * 75] * 3
    assert rows_of(tiny_model, "cat " * 300, PLAIN_TEXT) == [[CAT] * 75]


@pytest.mark.parametrize("behind", [1, 5, COMMA_REACH - 1, COMMA_REACH, 40])
def test_a_full_window_breaks_at_a_near_comma(tiny_model: DiffusersModel, behind: int) -> None:
    before = LENGTH - behind - 1
    prompt = "cat " * before + ", " + "a " * (behind + 10)
    first, second, third = rows_of(tiny_model, prompt, THREE)
    if behind < COMMA_REACH:
        assert first == [CAT] * before + [COMMA] and second == [A] * (behind + 10)
    else:
        assert first == [CAT] * before + [COMMA] + [A] * behind and second == [A] * 10
    assert not third
    assert rows_of(tiny_model, prompt, PLAIN_TEXT) == [([CAT] * before + [COMMA] + [A] * behind)]  # nothing follows


def test_a_comma_that_fits_no_more_begins_the_next_window(tiny_model: DiffusersModel) -> None:
    first, second, _ = rows_of(tiny_model, "cat " * 70 + ", a a a a, cat", THREE)
    assert first == [CAT] * 70 + [COMMA] + [A] * 4 and second == [COMMA, CAT]


@given(st.lists(st.sampled_from([(1,), (COMMA,), (5,) * 30, (6,) * 75, None]), max_size=200), st.integers(1, 4))
def test_windows_hold_every_unit_in_order(found: list[tuple[int, ...] | None], count: int) -> None:
    units = [None if ids is None else Unit(ids) for ids in found]
    windows = windows_of(iter(units), count, COMMA)
    assert len(windows) == count and all(sum(len(unit.ids) for unit in window) <= LENGTH for window in windows)
    flat = [unit for window in windows for unit in window]
    assert flat == [unit for unit in units if unit is not None][: len(flat)]
    every = windows_of(iter(units), 400, COMMA)
    assert [unit for window in every for unit in window] == [unit for unit in units if unit is not None]


def test_break_begins_a_window_only_with_weights(tiny_model: DiffusersModel) -> None:
    weighted = replace(THREE, weights=True)
    assert rows_of(tiny_model, "cat BREAK a cat", weighted) == [[CAT], [A, CAT], []]
    assert len(rows_of(tiny_model, "cat BREAK a cat", THREE)[0]) == 4


def by_hand(model: DiffusersModel, ids: list[int]) -> Tensor:
    full = torch.tensor([[START, *ids] + [END] * (76 - len(ids))])
    states: Tensor = model.text_encoder(full).last_hidden_state
    return states


def test_windows_lie_one_behind_the_other(tiny_model: DiffusersModel) -> None:
    got = tiny_model.encode_text(["cat " * 80, "a cat"], replace(THREE, windows=2))
    assert got.states.shape == (2, 154, 32) and got.pooled is None and got.time_ids is None
    first = torch.cat([by_hand(tiny_model, [CAT] * 75), by_hand(tiny_model, [CAT] * 5)], dim=1)
    second = torch.cat([by_hand(tiny_model, [A, CAT]), by_hand(tiny_model, [])], dim=1)
    torch.testing.assert_close(got.states, torch.cat([first, second]), rtol=1e-5, atol=1e-5)


def test_a_clip_skip_takes_a_deeper_layer_and_the_models_own_is_zero(tiny_model: DiffusersModel) -> None:
    hidden = tiny_model.text_encoder(torch.tensor([[START, CAT] + [END] * 75]), output_hidden_states=True).hidden_states
    norm: Any = text_root(tiny_model.text_encoder)
    for skip in (1, 2, 5, 12):
        got = tiny_model.encode_text(["cat"], TextOptions(clip_skip=skip)).states
        torch.testing.assert_close(got, norm.final_layer_norm(hidden[-skip]), rtol=1e-5, atol=1e-6)
    tiny_model.clip_skip = 2
    try:
        assert torch.equal(
            tiny_model.encode_text(["cat"]).states, tiny_model.encode_text(["cat"], TextOptions(clip_skip=2)).states
        )
    finally:
        tiny_model.clip_skip = 1
    with pytest.raises(BadConfig, match="clip_skip 13 is more than the text encoder's 12 layers"):
        tiny_model.encode_text(["cat"], TextOptions(clip_skip=13))


def test_emphasis_scales_the_words_states_and_keeps_the_mean(tiny_model: DiffusersModel) -> None:
    options = TextOptions(weights=True, windows=2)
    plain = tiny_model.encode_text(["a cat", "a dog"], options).states
    assert torch.equal(plain, tiny_model.encode_text(["a cat", "a dog"], TextOptions(windows=2)).states)
    got = tiny_model.encode_text(["a (cat:1.5)", "a dog"], options).states
    scaled = plain[0, :77].clone()
    scaled[2] *= 1.5
    torch.testing.assert_close(got[0, :77], scaled * (plain[0, :77].mean() / scaled.mean()), rtol=1e-5, atol=1e-6)
    assert torch.equal(got[0, 77:], plain[0, 77:]) and torch.equal(got[1], plain[1])
    literal = tiny_model.encode_text(["a (cat:1.5)"]).states
    assert not torch.allclose(literal, plain[:1, :77], atol=1e-2)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a sks dog", ["sks"]),
        ("sks", ["sks"]),
        ("sks, SKS.sks_dog", ["sks", "sks", "sks"]),
        ("sksy asks sks1 1sks", []),
        ("<cat>, sitting", ["<cat>"]),
        ("x<CAT>y", ["<cat>"]),
        ("<cat", []),
        ("<cat> two<cat-2>", ["<cat>", "<cat-2>"]),
        ("my cat is my cat's", ["my cat", "my cat"]),
        ("my  cat", []),
        ("mycat", []),
        ("a.b axb", ["a.b"]),
    ],
)
def test_where_a_word_is_found(text: str, found: list[str]) -> None:
    words = dict.fromkeys(["sks", "<cat>", "<cat-2>", "my cat", "my", "a.b"])
    del words["my"]
    parts = list(split_words(text, words))
    assert [word for _, word in parts if word is not None] == found
    assert "".join(part for part, _ in parts) == text


def test_the_longest_word_is_taken() -> None:
    words = dict.fromkeys(["blue", "blue sky", "sky"])
    assert [word for _, word in split_words("blue sky, sky blue", words) if word] == ["blue sky", "sky", "blue"]


def test_vectors_of_words_that_exist_change_nothing(tiny_model: DiffusersModel) -> None:
    vectors = tiny_model.token_vectors("a red cat")
    assert vectors.keys() == {"te1"} and vectors["te1"].shape == (3, 32)
    weight: Any = text_root(tiny_model.text_encoder)
    assert torch.equal(vectors["te1"][2], weight.embeddings.token_embedding.weight[CAT])
    vectors["te1"][0] += 1  # a copy
    assert not torch.equal(vectors["te1"][0], tiny_model.token_vectors("a")["te1"][0])
    prompts = ["photo of <x>, sitting", "<x>", "no such word"]
    want = tiny_model.encode_text([prompt.replace("<x>", "a red cat") for prompt in prompts], TextOptions(windows=2))
    with tiny_model.extra_tokens({"<x>": tiny_model.token_vectors("a red cat")}):
        got = tiny_model.encode_text(prompts, TextOptions(windows=2))
    torch.testing.assert_close(got.states, want.states, rtol=1e-5, atol=1e-6)
    after = tiny_model.encode_text(["<x>"]).states
    with tiny_model.extra_tokens({}):
        assert torch.equal(tiny_model.encode_text(["<x>"]).states, after)
    assert not torch.allclose(after, want.states[1:2, :77], atol=1e-2)
    assert not text_root(tiny_model.text_encoder).embeddings.token_embedding._forward_hooks  # type: ignore[union-attr]


def test_inner_words_hide_outer_ones_and_come_off_after_errors(tiny_model: DiffusersModel) -> None:
    cat, dog = tiny_model.token_vectors("cat"), tiny_model.token_vectors("dog")

    def states(prompt: str) -> Tensor:
        return tiny_model.encode_text([prompt]).states

    with tiny_model.extra_tokens({"Xx": cat}):
        with pytest.raises(RuntimeError), tiny_model.extra_tokens({"xX": dog, "yy": cat}):
            torch.testing.assert_close(states("xx yy"), states("dog cat"))
            raise RuntimeError
        torch.testing.assert_close(states("xx"), states("cat"))
        assert not torch.allclose(states("yy"), states("cat"), atol=1e-2)


def test_a_word_is_never_torn_by_a_window(tiny_model: DiffusersModel) -> None:
    vectors = {"te1": torch.randn(10, 32)}
    with tiny_model.extra_tokens({"<x>": vectors}):
        first, second = rows_of(tiny_model, "cat " * 70 + "<x> a", replace(THREE, windows=2))
        assert first == [CAT] * 70 and second == [PLACEHOLDER] * 10 + [A]
        weights = TextOptions(windows=2, weights=True)
        assert rows_of(tiny_model, "(<x>:1.3) a", weights)[0] == [PLACEHOLDER] * 10 + [A]


def finite_difference(loss: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor) -> float:
    step = 1e-4
    return float((loss(at + step * direction) - loss(at - step * direction)) / (2 * step))


@pytest.mark.parametrize("how", ["plain", "checkpointed", "recomputed"])
def test_gradients_reach_the_vectors_of_every_prompt(make_tiny: Callable[[int], DiffusersModel], how: str) -> None:
    model = make_tiny(3)
    model.text_encoder.double()
    if how == "checkpointed":
        model.text_encoder.gradient_checkpointing_enable()
        model.text_encoder.train()
    torch.manual_seed(0)
    vectors, probe = torch.randn(2, 32).double(), torch.randn(2, 154, 32).double()
    prompts, options = ["a <x> and <x>", "cat " * 74 + "<x>"], TextOptions(windows=2, weights=True)

    def loss(given: Tensor) -> Tensor:
        def run(v: Tensor) -> Tensor:
            with model.extra_tokens({"<x>": {"te1": v}}):
                return model.encode_text(prompts, options).states

        states = checkpoint(run, given, use_reentrant=False) if how == "recomputed" else run(given)
        return (states * probe).sum()

    parameter = vectors.clone().requires_grad_()
    loss(parameter).backward()
    assert parameter.grad is not None
    for _ in range(2):
        direction = torch.randn_like(vectors)
        want = finite_difference(lambda v: loss(v).detach(), vectors, direction)
        assert float((parameter.grad * direction).sum()) == pytest.approx(want, rel=1e-6)


def test_vectors_are_read_in_the_embeddings_dtype(make_tiny: Callable[[int], DiffusersModel]) -> None:
    model = make_tiny(1)
    model.text_encoder.to(torch.bfloat16)
    vectors = torch.randn(1, 32, requires_grad=True)
    with model.extra_tokens({"<x>": {"te1": vectors}}):
        states = model.encode_text(["<x> cat"]).states
    assert states.dtype == torch.bfloat16
    states.float().sum().backward()
    assert vectors.grad is not None and vectors.grad.dtype == torch.float32 and vectors.grad.any()


def test_words_that_cannot_be_read_are_refused(tiny_model: DiffusersModel) -> None:
    good = torch.zeros(1, 32)
    for vectors, kind, match in [
        ({"": {"te1": good}}, BadConfig, "no word"),
        ({" x": {"te1": good}}, BadConfig, "no word"),
        ({"x": {"te2": good}}, BadConfig, "no vectors for te1"),
        ({"x": {"te1": torch.zeros(1, 33)}}, ShapeMismatch, r"\(1, 33\)"),
        ({"x": {"te1": torch.zeros(32)}}, ShapeMismatch, r"\(32,\)"),
        ({"x": {"te1": torch.zeros(0, 32)}}, BadConfig, "one number from 1 to 75"),
        ({"x": {"te1": torch.zeros(76, 32)}}, BadConfig, "one number from 1 to 75"),
    ]:
        with pytest.raises(kind, match=match), tiny_model.extra_tokens(vectors):
            pass
    for options in (TextOptions(windows=0), TextOptions(clip_skip=-1)):
        with pytest.raises(BadConfig, match="windows begin at 1"):
            tiny_model.encode_text(["x"], options)
