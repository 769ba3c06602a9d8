"""CLIP's vocabulary read by our own code, against two other readers of it."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_lora.errors import BadFile
from lib_lora.models.tokenizer import SD1_TEXT_CONFIG, load_tokenizer, write_clip_folder
from lib_lora.models.vocabulary import Vocabulary, packaged_vocabulary, vocabulary_of

TEXTS = (
    "a photo of a sks dog",
    "ohwx man, 35mm f/1.4 -- high detail!!!",
    "The CAT's whiskers aren't we'll they've I'm I'd",
    "snake_case and kebab-case; (a:1.2) [b]",
    "1girl, 2boys, 100%",
    "крокодил 猫 日本語のテキスト ñandú café",
    "🙂🐶 emoji",
    "  many   spaces\tand\nlines ",
    "",
)


@cache
def open_clip() -> Any:
    """open_clip's tokenizer; its module alone, because the package wants torchvision."""
    path = Path(str(importlib.util.find_spec("open_clip").origin)).with_name("tokenizer.py")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


@cache
def ours() -> Vocabulary:
    return packaged_vocabulary()


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return ours()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_folder(tmp_path_factory.mktemp("clip"), SD1_TEXT_CONFIG)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers_and_of_open_clip(text: str, vocabulary: Vocabulary, folder: Path) -> None:
    ids = [token.id for token in vocabulary.tokens(text)]
    assert ids == load_tokenizer(folder)(text, add_special_tokens=False)["input_ids"]
    assert ids == open_clip().encode(text)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=24))
def test_any_plain_text_is_read_as_open_clip_reads_it(text: str) -> None:
    if "&" in text or "<|" in text:  # open_clip reads HTML entities and special tokens, prompts have none
        return
    assert [token.id for token in ours().tokens(text)] == open_clip().encode(text)


def test_letters_and_word_ends_are_told(vocabulary: Vocabulary) -> None:
    tokens = vocabulary.tokens("Rexdog é")
    assert [(token.letters, token.ends) for token in tokens] == [("rex", False), ("dog", True), ("é", True)]


def test_it_holds_all_tokens_but_the_two_special_ones(vocabulary: Vocabulary) -> None:
    assert len(vocabulary) == 49406


def test_a_folder_gives_the_same_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    assert vocabulary_of(folder).tokens(TEXTS[1]) == vocabulary.tokens(TEXTS[1])


def test_a_folder_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
    with pytest.raises(BadFile, match="not CLIP's"):
        vocabulary_of(tmp_path)


def test_a_folder_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=tmp_path.name):
        vocabulary_of(tmp_path)
