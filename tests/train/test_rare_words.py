"""Rare words: what the real vocabulary says of triggers."""

from __future__ import annotations

import re

import pytest

from lib_lora.models.vocabulary import Vocabulary, packaged_vocabulary
from lib_lora.train.rare_words import CANDIDATES, MEANS, check_trigger, suggest


@pytest.fixture(scope="module")
def clip() -> Vocabulary:
    return packaged_vocabulary()


@pytest.mark.parametrize("word", CANDIDATES)
def test_every_candidate_follows_the_rule(word: str, clip: Vocabulary) -> None:
    assert re.fullmatch("[b-df-hj-np-tv-z][aeiou][b-df-hj-np-tv-z][aeiou][b-df-hj-np-tv-z]", word)
    tokens = clip.tokens(word)
    assert len(tokens) == 2 and min(token.id for token in tokens) >= 9000
    assert check_trigger(word, clip).verdict == "good"


def test_no_candidate_twice() -> None:
    assert len(set(CANDIDATES)) == len(CANDIDATES)


def test_common_words_are_poor(clip: Vocabulary) -> None:
    for word in ("dog", "Emma", "my cat", "corgi"):
        facts = check_trigger(word, clip)
        assert facts.verdict == "poor", word
        assert "knows well" in facts.notes[0] and word in facts.notes[0]


def test_rare_single_tokens_are_good_and_shown_as_read(clip: Vocabulary) -> None:
    facts = check_trigger(" OHWX ", clip)
    assert (facts.text, facts.pieces, facts.ids, facts.verdict) == ("OHWX", ("ohwx",), (47993,), "good")
    assert facts.notes == ()


def test_sks_is_said_to_be_a_rifle(clip: Vocabulary) -> None:
    facts = check_trigger("sks", clip)
    assert facts.verdict == "fair" and "rifle" in facts.notes[0]
    assert "sks" in MEANS


def test_a_rare_word_before_a_class_is_no_known_word(clip: Vocabulary) -> None:
    assert check_trigger("ohwx man", clip).verdict == "fair"  # "man" is in it
    assert "'man'" in check_trigger("ohwx man", clip).notes[0]


def test_a_known_word_within_one_is_named(clip: Vocabulary) -> None:
    facts = check_trigger("rexdog", clip)
    assert facts.verdict == "fair" and "'dog'" in facts.notes[0]


def test_long_words_are_said_to_be_long(clip: Vocabulary) -> None:
    facts = check_trigger("qzxv7183kk", clip)
    assert facts.verdict == "fair" and f"{len(facts.ids)} tokens" in facts.notes[0]


@pytest.mark.parametrize("word", ["a,b", "(rex)", "<rex>", "rex:1.2", "back\\slash", "this AND that"])
def test_prompt_syntax_is_poor(word: str, clip: Vocabulary) -> None:
    facts = check_trigger(word, clip)
    assert facts.verdict == "poor" and "in a prompt" in facts.notes[0]


def test_names_in_use_are_poor_in_either_case(clip: Vocabulary) -> None:
    facts = check_trigger("Xulek", clip, taken=["xulek"])
    assert facts.verdict == "poor" and "'Xulek'" in facts.notes[0]


def test_no_trigger_is_no_fault(clip: Vocabulary) -> None:
    facts = check_trigger("  ", clip)
    assert (facts.text, facts.pieces, facts.verdict, facts.notes) == ("", (), "good", ())


def test_without_a_tokenizer_the_rest_is_still_told() -> None:
    assert check_trigger("dog", None).ids == ()
    assert check_trigger("(dog)", None).verdict == "poor"
    assert check_trigger("sks", None).verdict == "fair"
    assert suggest(3, None) == list(CANDIDATES[:3])


def test_suggestions_leave_out_what_is_in_use(clip: Vocabulary) -> None:
    first = suggest(2, clip)
    assert len(first) == 2
    assert suggest(2, clip, taken=[first[0].upper()])[0] == first[1]
    assert suggest(0, clip) == []
