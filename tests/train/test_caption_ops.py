"""What is done to captions, against what kohya's and sd_dreambooth_extension's code does to the same ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib_lora.train.caption_ops import caption_of, chosen_words, fill, split_tags, substitute, substitute_class
from lib_lora.train.captions import Item
from lib_lora.train.plan import Visit
from lib_lora.train.sections_data import Data

ITEM = Item(Path("a.png"), "sks, 1girl , red hat,blue sky, smile", trigger="sks")


def drawn(data: Data, count: int = 400, item: Item = ITEM) -> list[str]:
    return [caption_of(item, Visit(0, step, 0), data, seed=3) for step in range(count)]


def test_without_operations_a_caption_stays_as_written() -> None:
    assert set(drawn(Data(keep_tags=2), 5)) == {ITEM.caption}


def test_shuffling_keeps_the_first_tags() -> None:
    captions = [caption.split(", ") for caption in drawn(Data(shuffle=True, keep_tags=2))]
    assert all(tags[:2] == ["sks", "1girl"] for tags in captions)
    orders = Counter(tuple(tags[2:]) for tags in captions)
    assert len(orders) == 6 and all(sorted(order) == ["blue sky", "red hat", "smile"] for order in orders)
    assert min(orders.values()) > 400 / 6 * 0.6


def test_tags_are_dropped_each_for_itself() -> None:
    captions = [caption.split(", ") for caption in drawn(Data(tag_dropout=0.3, keep_tags=1))]
    assert all(tags[0] == "sks" for tags in captions)
    for tag in ("1girl", "red hat", "blue sky", "smile"):
        assert sum(tag in tags for tags in captions) / 400 == pytest.approx(0.7, abs=0.07)
    order = ["sks", "1girl", "red hat", "blue sky", "smile"]
    assert all(tags == sorted(tags, key=order.index) for tags in captions)
    assert set(drawn(Data(tag_dropout=1.0), 9)) == {""}


def test_whole_captions_are_dropped() -> None:
    captions = drawn(Data(caption_dropout=0.25))
    assert captions.count("") / 400 == pytest.approx(0.25, abs=0.06)
    assert set(captions) == {"", ITEM.caption}
    assert set(drawn(Data(caption_dropout=1.0, prepend_trigger=True), 9)) == {""}


def test_draws_depend_on_step_and_slot_alone() -> None:
    data = Data(shuffle=True, tag_dropout=0.2)
    before = torch.get_rng_state()
    once = drawn(data, 20)
    torch.manual_seed(99)
    assert drawn(data, 20) == once
    assert len({caption_of(ITEM, Visit(0, 0, slot), data, 3) for slot in range(9)}) > 4
    torch.set_rng_state(before)


def test_deleted_tags() -> None:
    data = Data(delete_tags=("Red Hat", "blue_sky"))
    assert drawn(data, 1) == ["sks, 1girl, smile"]
    item = replace(ITEM, caption=r"(red hat:1.2), [blue sky], rate\(d\)")
    assert drawn(replace(data, weights=True, delete_tags=("red hat", "blue sky", "rate(d)")), 1, item) == [""]
    assert drawn(replace(data, delete_tags=("hat",)), 1) == ["sks, 1girl, red hat, blue sky, smile"]


def test_the_trigger_stands_first_unless_it_is_there() -> None:
    data = Data(prepend_trigger=True)
    assert drawn(data, 1) == [ITEM.caption]
    item = replace(ITEM, caption="a sksish hat")
    assert drawn(data, 1, item) == ["sks, a sksish hat"]
    assert drawn(data, 1, replace(item, caption="")) == ["sks"]
    assert drawn(data, 1, replace(item, caption="an old SKS")) == ["an old SKS"]
    dropped = set(drawn(replace(data, tag_dropout=0.5, shuffle=True)))
    assert all("sks" in caption.split(", ") for caption in dropped)


def test_separators() -> None:
    item = replace(ITEM, caption="a, b; c;d")
    assert split_tags(item.caption, Data(separator=";")) == ["a, b", "c", "d"]
    assert drawn(Data(separator=";", delete_tags=("c",)), 1, item) == ["a, b, d"]
    assert drawn(Data(separator=" ", delete_tags=("c",)), 1, replace(item, caption="a  b c")) == ["a b"]


def test_emphasis_is_not_taken_apart() -> None:
    caption = r"(red hat, smile:1.2), [a, b], c \(x, y\), d"
    assert split_tags(caption, Data(weights=True)) == ["(red hat, smile:1.2)", "[a, b]", r"c \(x", r"y\)", "d"]
    assert split_tags(caption, Data())[:2] == ["(red hat", "smile:1.2)"]
    assert split_tags("a), b", Data(weights=True)) == ["a)", "b"]


def test_wildcards_are_drawn_anew_at_each_visit() -> None:
    item = replace(ITEM, caption="a {red|blue|dark green} ball, {{kept}}, {one}, {}, {a|}")
    data = Data(wildcards=True)
    captions = Counter(drawn(data, 600, item))
    assert len(captions) == 6
    for words in ("red", "blue", "dark green"):
        for end in (" a", ""):
            assert captions[f"a {words} ball, {{kept}}, one, {{}},{end or ' '}"] / 600 == pytest.approx(1 / 6, abs=0.06)
    assert drawn(data, 50, item) == drawn(data, 50, item)
    assert set(drawn(Data(), 9, item)) == {item.caption}, "unless it is asked for, braces are only braces"


@given(st.text(st.sampled_from("ab{}|, ")), st.integers(0, 99))
def test_any_text_may_have_braces(text: str, seed: int) -> None:
    found = chosen_words(text, torch.Generator().manual_seed(seed))
    assert len(found) <= len(text) and set(found) <= set(text)
    if "{" not in text and "}" not in text:
        assert found == text


def test_a_separator_says_which_tags_stay_in_place() -> None:
    item = replace(ITEM, caption="sks, 1girl ||| red hat, smile, sky ||| best, last")
    data = Data(keep_tags_separator="|||", shuffle=True, tag_dropout=0.4, keep_tags=4)
    captions = [caption.split(", ") for caption in drawn(data, 200, item)]
    assert all(tags[:2] == ["sks", "1girl"] and tags[-2:] == ["best", "last"] for tags in captions)
    assert len({tuple(tags) for tags in captions}) == 1 + 3 + 6 + 6  # nothing, one, two or three of three in any order
    assert set(drawn(Data(keep_tags_separator="|||"), 5, item)) == {"sks, 1girl, red hat, smile, sky, best, last"}
    assert set(drawn(replace(data, keep_tags_separator=";"), 5, item)) != set(drawn(data, 5, item))


def test_tags_that_belong_together_are_shuffled_and_dropped_as_one() -> None:
    item = replace(ITEM, caption="sks, red;;;hat, sky;;;blue;;;wide, smile")
    data = Data(secondary_separator=";;;", shuffle=True, tag_dropout=0.3, keep_tags=1)
    seen = set(drawn(data, 300, item))
    assert all(("red" in one) == ("red, hat" in one) and ("sky" in one) == ("sky, blue, wide" in one) for one in seen)
    assert len(seen) == 1 + 3 + 6 + 6
    assert set(drawn(Data(secondary_separator=";;;"), 3, item)) == {"sks, red, hat, sky, blue, wide, smile"}


def test_lines_are_variants() -> None:
    item = replace(ITEM, caption="one", variants=("two", "three"))
    counts = Counter(drawn(Data(), 300, item))
    assert set(counts) == {"one", "two", "three"} and min(counts.values()) > 70


def test_class_pictures_keep_their_caption() -> None:
    item = replace(ITEM, prior=True)
    assert set(
        drawn(Data(shuffle=True, caption_dropout=0.9, prepend_trigger=True, delete_tags=("smile",)), 9, item)
    ) == {ITEM.caption}


@pytest.mark.parametrize(
    ("found", "want", "of_class"),
    [  # as sd_dreambooth_extension's create_text turns "[filewords]" with token sks and class dog
        ("a dog on grass", "sks on grass", "a dog on grass"),
        ("the dog, a dog house", "sks, sks house", "the dog, a dog house"),
        ("sks dog on grass", "sks dog on grass", "dog on grass"),
        ("sks on grass", "sks on grass", "dog on grass"),
        ("running on grass", "sks, running on grass", "dog, running on grass"),
        ("hotdog stand", "sks, hotdog stand", "dog, hotdog stand"),
        (r"Dog \(animal\)", "sks (animal)", "Dog (animal)"),
    ],
)
def test_words_of_a_found_caption_are_exchanged(found: str, want: str, of_class: str) -> None:
    data = Data(trigger="sks", class_word="dog")
    assert substitute(found, data) == want
    assert substitute_class(found, data) == of_class


def test_substitution_with_one_word_only() -> None:
    assert substitute("a hat", Data(trigger="sks")) == "sks, a hat"
    assert substitute("a sks hat", Data(trigger="sks")) == "a sks hat"
    assert substitute("a hat", Data(class_word="dog")) == "a hat"
    assert substitute("a c++ (x)", Data(trigger="(x)", class_word="c++")) == "a c++ (x)"
    assert substitute("the c++", Data(trigger=r"\1", class_word="c++")) == "1"  # a trigger is no pattern
    assert substitute_class("sks, a hat, sks", Data(trigger="sks")) == "a hat"


def test_templates() -> None:
    data = Data(trigger="sks", class_word="dog")
    assert fill("a {trigger} {class}, [filewords]", data, "on {class} grass") == "a sks dog, on dog grass"
    assert fill("a {trigger} {class}, [filewords]", data) == "a sks dog"
    assert fill("[filewords], by {trigger}", data) == "by sks"
