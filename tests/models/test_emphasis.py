"""The webui's emphasis grammar, and its arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib_lora.models.emphasis import apply, pieces_of


@pytest.mark.parametrize(
    ("prompt", "want"),
    [
        ("a cat", [("a cat", 1)]),
        ("", [("", 1)]),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("((red))", [("red", 1.1**2)]),
        ("(red:1.5) cat", [("red", 1.5), (" cat", 1)]),
        ("(red: 0.5 )", [("red", 0.5)]),
        ("(red:-2)", [("red", -2)]),
        ("(a (b:2) c:3)", [("a ", 3), ("b", 6), (" c", 3)]),
        ("[red] cat", [("red", 1 / 1.1), (" cat", 1)]),
        ("([red])", [("red", 1.1 / 1.1)]),
        ("(red", [("red", 1.1)]),
        ("red)", [("red)", 1)]),
        ("[red", [("red", 1 / 1.1)]),
        ("red:1.5)", [("red:1.5)", 1)]),
        ("(a:b:1.5)", [("a:b", 1.5)]),
        ("(red:1.2.3) cat", [("red:1.2.3) cat", 1.1)]),
        (r"\(red\)", [("(red)", 1)]),
        (r"\[red\] (b\)c)", [("[red] ", 1), ("b)c", 1.1)]),
        (r"a\\(b)", [("a\\", 1), ("b", 1.1)]),
        (r"a\b", [("ab", 1)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("<x> (a) {b}", [("<x> ", 1), ("a", 1.1), (" {b}", 1)]),
    ],
)
def test_grammar(prompt: str, want: list[tuple[str, float]]) -> None:
    got = pieces_of(prompt)
    assert [piece.text for piece in got] == [text for text, _ in want]
    assert all(math.isclose(piece.weight, weight) for piece, (_, weight) in zip(got, want))
    assert not any(piece.ends for piece in got)


def test_break_ends_a_window_and_keeps_the_weights() -> None:
    got = [
        (piece.text, round(piece.weight, 6), piece.ends) for piece in pieces_of("a BREAK (b\nBREAK  c:2), BREAKFAST")
    ]
    assert got == [("a", 1, True), ("b", 2, True), ("c", 2, False), (", BREAKFAST", 1, False)]


@given(st.text(st.sampled_from(r"ab ,:.12()[]\-"), max_size=30))
def test_any_text_is_read_and_no_letter_lost(text: str) -> None:
    got = "".join(piece.text for piece in pieces_of(text))
    assert [c for c in got if c in "ab,"] == [c for c in text if c in "ab,"]


def test_states_are_scaled_and_each_row_keeps_its_mean() -> None:
    states = torch.randn(3, 5, 4, dtype=torch.float64) + 0.3
    weights = torch.ones(3, 5)
    weights[0, 2], weights[2, 1] = 1.5, -0.5
    got = apply(states, weights)
    assert torch.equal(got[1], states[1])
    for row in (0, 2):
        scaled = states[row] * weights[row, :, None]
        torch.testing.assert_close(got[row], scaled * (states[row].mean() / scaled.mean()), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got[row].mean(), states[row].mean())
    assert apply(states, torch.ones(3, 5)) is states
