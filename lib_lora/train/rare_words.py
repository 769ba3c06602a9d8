"""The trigger: whether the text encoder takes it for something it knows, and rare words to choose from."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lib_lora.models.vocabulary import Token

# Words of two syllables that mean nothing in the languages we know, consonant-vowel-consonant-vowel-consonant, each
# read as two tokens of which none is among the 9000 first. Chosen by eye from all that follow this rule.
CANDIDATES = (
    *("xulek", "zoruz", "jomuz", "niruz", "gawuz", "vixuz", "xumik", "luruz", "fomuz", "rixuv", "kaduz", "zadax"),
    *("bixuv", "xutir", "taduz", "dazuv", "hexuv", "paxuz", "saxuv", "wumez", "zunuz", "jaduv", "nunox", "xehov"),
    *("zapuv", "kopuv", "riluz", "tuxuv", "laxuv", "voxuz", "bavuv", "faxuz", "gawox", "zonuz", "xulev", "dixuv"),
)
KNOWN = 40000  # ids below: whole words that the text encoder has read often
EVERYDAY = 5000  # ids below: pieces that mean something by themselves
LONG = 4  # tokens
# What single words are known to stand for although they are rare
MEANS: Mapping[str, str] = {"sks": "a rifle", "shs": "a school"}
_SYNTAX = re.compile(r"[()\[\]{}<>:|\\,]|\b(?:AND|BREAK)\b")


class Tokenizer(Protocol):
    """What reads words: models.vocabulary.Vocabulary."""

    def tokens(self, text: str) -> Sequence[Token]:
        """The tokens of a text."""


@dataclass(frozen=True)
class TriggerFacts:
    """What is known of a trigger.

    `pieces` are the letters of its tokens and `ids` their numbers, empty without a tokenizer. `verdict`: "good", "fair"
    (works, with the drawback that `notes` tell) or "poor" (choose another one). `notes` are sentences for the user,
    the gravest first.
    """

    text: str
    pieces: tuple[str, ...]
    ids: tuple[int, ...]
    verdict: str
    notes: tuple[str, ...]


def check_trigger(text: str, tokenizer: Tokenizer | None, taken: Collection[str] = ()) -> TriggerFacts:
    """What the text encoder makes of a trigger. `taken` are names in use: embeddings, networks.

    Without a tokenizer only what needs none is told. No trigger at all is fine: a style may be called by its tag alone.
    """
    word = " ".join(text.split())
    tokens = tuple(tokenizer.tokens(word)) if tokenizer is not None and word else ()
    poor = [*_syntax(word), *_clash(word, taken), *_known(word, tokens)] if word else []
    fair = [*_meaning(word), *_long(tokens), *_everyday(tokens, bool(poor))] if word else []
    verdict = "poor" if poor else "fair" if fair else "good"
    pieces, ids = tuple(token.letters for token in tokens), tuple(token.id for token in tokens)
    return TriggerFacts(word, pieces, ids, verdict, (*poor, *fair))


def suggest(n: int, tokenizer: Tokenizer | None, taken: Collection[str] = ()) -> list[str]:
    """`n` rare words at most, none of them in use, the best first."""
    judged = [check_trigger(word, tokenizer, taken) for word in CANDIDATES]
    good = [facts for facts in judged if facts.verdict == "good"]
    return [facts.text for facts in sorted(good, key=lambda facts: len(facts.ids))][:n]


def _syntax(word: str) -> list[str]:
    found = _SYNTAX.search(word)
    if found is None:
        return []
    return [f"{found[0]!r} means something else in a prompt; use letters only."]


def _clash(word: str, taken: Collection[str]) -> list[str]:
    if word.lower() not in {name.lower() for name in taken}:
        return []
    return [f"An embedding or a network is called {word!r} already; the prompt would call that one."]


def _known(word: str, tokens: Sequence[Token]) -> list[str]:
    """Whether every word of the trigger is one the text encoder has often read."""
    if not tokens or len(tokens) != len(word.split()) or any(token.id >= KNOWN for token in tokens):
        return []
    what = "a word" if len(tokens) == 1 else "words"
    return [f"{word!r} is {what} the model knows well; training has to overwrite what it draws for it."]


def _meaning(word: str) -> list[str]:
    means = MEANS.get(word.lower())
    return [f"{word!r} is also {means}; at a low strength the model may draw that."] if means else []


def _long(tokens: Sequence[Token]) -> list[str]:
    return [f"It takes {len(tokens)} tokens; a shorter word is learned sooner."] if len(tokens) >= LONG else []


def _everyday(tokens: Sequence[Token], known: bool) -> list[str]:
    """Whether a longer word is made of pieces that mean something: "rexdog" is read as "rex" and "dog"."""
    found = [token.letters for token in tokens if token.ends and len(token.letters) > 2 and token.id < EVERYDAY]
    if known or len(tokens) < 2 or not found:
        return []
    return [f"It contains {found[0]!r}, which the model knows; the pictures may show that."]
