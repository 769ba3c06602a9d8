"""Every setting's value as a field shows it, and back: equal, or refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_lora.errors import BadConfig
from lib_lora.train.config import fields, find
from lib_lora.train.settings import Setting
from lib_lora.ui.fields import LABELS, SECTIONS, checked, label_of, number_text, text_of

TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=30)
BY_TYPE = {
    kind: next(item for item in fields() if item.type is kind and not item.choices and not item.optional)
    for kind in (bool, str, tuple)
}
RANK, RATE, EPOCHS, FOLDER = (find(key) for key in ("network.rank", "optimizer.lr", "training.epochs", "data.template"))


@pytest.mark.parametrize("item", list(fields()), ids=lambda item: item.key)
def test_defaults_and_bounds_come_back(item: Setting) -> None:
    values = [item.default, *item.choices]
    if item.type in (int, float) and item.low is not None and item.high is not None:
        values += [item.type(item.low), item.type(item.high)]
    for value in values:
        assert checked(item, text_of(item, value)) == value
        assert isinstance(text_of(item, value), bool if item.type is bool else str)


@settings(max_examples=300)
@given(st.floats(0, 10))
def test_numbers_come_back_exactly(value: float) -> None:
    assert float(number_text(value)) == value
    assert checked(RATE, text_of(RATE, value)) == value


@given(st.lists(TEXT, max_size=4))
def test_lists_come_back(values: list[str]) -> None:
    item = BY_TYPE[tuple]
    assert checked(item, text_of(item, tuple(values))) == tuple(values)


@given(TEXT)
def test_texts_come_back(value: str) -> None:
    assert checked(FOLDER, text_of(FOLDER, value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-4, "1e-4"), (2e-6, "2e-6"), (1.5e-5, "1.5e-5"), (0.01, "0.01"), (8.0, "8"), (0.0, "0"), (4096.0, "4096")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number_text(value) == text


@pytest.mark.parametrize("text", ["1e-4", " 1e-4 ", "0.0001", ".0001", "1E-4", "+1e-4"])
def test_ways_to_write_a_rate(text: str) -> None:
    assert checked(RATE, text) == 1e-4


@pytest.mark.parametrize(
    "text", ["", "fast", "1e-4 x", "nan", "inf", "1,5", "1_0", "-1", "11", "0x1", "[1]", "true", "1e999"]
)
def test_what_is_no_rate_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadConfig, match="optimizer.lr"):
        checked(RATE, text)


@pytest.mark.parametrize(("text", "value"), [("16", 16), (" 16 ", 16), ("16.0", 16), ("1e2", 100)])
def test_whole_numbers(text: str, value: int) -> None:
    found = checked(RANK, text)
    assert found == value and type(found) is int


@pytest.mark.parametrize("text", ["1.5", "", "ten", "0", "2000", "1e99", "9" * 5000, True, None, [16], math.nan])
def test_what_is_no_whole_number_is_refused_by_name(text: Any) -> None:
    with pytest.raises(BadConfig, match="network.rank"):
        checked(RANK, text)


def test_large_seeds_are_exact() -> None:
    seed = find("training.seed")
    assert checked(seed, str(2**53 - 1)) == 2**53 - 1


@pytest.mark.parametrize(("text", "value"), [("", None), ("  ", None), ("3", 3)])
def test_what_may_be_left_out(text: str, value: int | None) -> None:
    assert checked(EPOCHS, text) == value


def test_lists_are_read_by_line_or_as_json() -> None:
    item = BY_TYPE[tuple]
    assert checked(item, "a\n\nb") == ("a", "b") == checked(item, '["a", "b"]')
    with pytest.raises(BadConfig, match=item.key):
        checked(item, "[1")


def test_switches() -> None:
    item = BY_TYPE[bool]
    assert checked(item, "true") is True and checked(item, False) is False
    with pytest.raises(BadConfig, match=item.key):
        checked(item, "on")


def test_titles_and_labels_are_of_settings_there_are() -> None:
    items = list(fields())
    assert set(SECTIONS) == {item.section for item in items}
    assert set(LABELS) <= {item.key for item in items}
    for section in SECTIONS:
        labels = [label_of(item) for item in items if item.section == section]
        assert len(labels) == len(set(labels))
