"""What is done to a caption: words put in when it is read, tags shuffled and dropped at each visit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lib_lora.train import keyed
from lib_lora.train.sections_data import Data

if TYPE_CHECKING:
    from lib_lora.train.captions import Item
    from lib_lora.train.plan import Visit

FILEWORDS = "[filewords]"
_OPEN, _CLOSE = "\0", "\1"  # no text file has them
_EMPHASIS = re.compile(r"[(\[]+(.*?)(?::\s*-?[\d.]+\s*)?(?<!\\)[)\]]+")


def caption_of(item: Item, visit: Visit, data: Data, seed: int) -> str:
    """The caption of one visit: one line of several, tags deleted, shuffled and dropped, the trigger put before it.

    In kohya's order: first whether there is any caption at all, then words drawn of {a|b}, then shuffling, then
    dropping of single tags; the first `keep_tags` tags, or those `keep_tags_separator` says, are left where they are. A
    caption that nothing is done to stays as it is written; of one that is taken apart the tags are joined by ", ".
    Drawn by (seed, step, slot). Class pictures keep their caption.
    """
    if item.prior:
        return item.caption
    generator = keyed.generator(seed, "caption", visit.step, visit.slot)
    if data.caption_dropout and _draw(generator) < data.caption_dropout:
        return ""
    lines = (item.caption, *item.variants)
    caption = lines[int(_draw(generator) * len(lines))] if len(lines) > 1 else item.caption
    if data.wildcards:
        caption = chosen_words(caption, generator)
    parted = bool(data.keep_tags_separator) and data.keep_tags_separator in caption
    if parted or data.shuffle or data.tag_dropout or data.delete_tags:
        caption = join_tags(_changed(caption, data, generator), data)
    if data.secondary_separator:
        caption = caption.replace(data.secondary_separator, _joint(data))
    if data.prepend_trigger and item.trigger and not says(caption, item.trigger):
        return join_tags([item.trigger, caption] if caption else [item.trigger], data)
    return caption


def split_tags(caption: str, data: Data) -> list[str]:
    """The tags of a caption, without the spaces round them; a separator within emphasis separates nothing."""
    parts: list[str] = []
    depth, current, place = 0, "", 0
    separator = data.separator or ","
    while place < len(caption):
        sign = caption[place]
        if data.weights and sign == "\\":
            current, place = current + caption[place : place + 2], place + 2
            continue
        if depth == 0 and caption.startswith(separator, place):
            parts, current, place = [*parts, current], "", place + len(separator)
            continue
        if data.weights:
            depth = max(0, depth + (sign in "([") - (sign in ")]"))
        current, place = current + sign, place + 1
    return [tag for tag in (part.strip() for part in [*parts, current]) if tag]


def join_tags(tags: Sequence[str], data: Data) -> str:
    """A caption of tags."""
    return _joint(data).join(tags)


def chosen_words(caption: str, generator: torch.Generator) -> str:
    """The caption with one of a, b and c, each as likely, in place of {a|b|c}; {{ and }} become braces.

    What kohya's `enable_wildcard` does; one within another is not looked for.
    """
    text = caption.replace("{{", _OPEN).replace("}}", _CLOSE)

    def choice(found: re.Match[str]) -> str:
        words = found[1].split("|")
        return words[int(_draw(generator) * len(words))]

    return re.sub(r"\{([^{}]+)\}", choice, text).replace(_OPEN, "{").replace(_CLOSE, "}")


def says(caption: str, words: str) -> bool:
    """Whether the words are in the caption, as words of their own and in either case."""
    return re.search(_words(words), caption, re.IGNORECASE) is not None


def tidy(text: str) -> str:
    """Text on one line with single spaces."""
    return " ".join(text.split())


def fill(template: str, data: Data, found: str = "") -> str:
    """`template` with the caption found put in for [filewords], then {trigger} and {class}; spaces tidied."""
    text = template.replace(FILEWORDS, found)
    text = tidy(text.replace("{trigger}", data.trigger).replace("{class}", data.class_word))
    if FILEWORDS in template and not found:  # nothing stands between these commas
        text = re.sub(r"\s*,(\s*,)+", ",", text).strip(" ,")
    return text


def substitute(text: str, data: Data) -> str:
    """The caption of a picture of the concept, from one that a tagger or a person wrote.

    As sd_dreambooth_extension does: where it names the class but not the trigger, the trigger takes the place of the
    class word and its article; where it names neither, or there is no class, it begins with the trigger.
    """
    trigger, word = data.trigger, data.class_word
    if trigger and not says(text, trigger):
        if word and says(text, word):
            text = re.sub(rf"(\b(?:a|an|the)\s+)?{_words(word)}", lambda _: trigger, text, flags=re.IGNORECASE)
        else:
            text = f"{trigger}, {text}" if text else trigger
    return _plain(text, data)


def substitute_class(text: str, data: Data) -> str:
    """The caption of a picture of the class: the trigger goes, or becomes the class word where that is not there."""
    trigger, word = data.trigger, data.class_word
    if trigger:
        instead = "" if not word or says(text, word) else word
        text = re.sub(_words(trigger), lambda _: instead, text, flags=re.IGNORECASE)
    if word and not says(text, word):
        text = f"{word}, {text}" if text else word
    return re.sub(r"\s*,(\s*,)+", ",", _plain(text, data)).strip(" ,")


def _changed(caption: str, data: Data, generator: torch.Generator) -> list[str]:
    unwanted = {tag_name(tag) for tag in data.delete_tags}
    parts = caption.split(data.keep_tags_separator, 2) if data.keep_tags_separator else [caption]
    groups = [[tag for tag in split_tags(part, data) if tag_name(tag) not in unwanted] for part in parts]
    whole = len(groups) == 1
    kept, free, last = [groups[0][: data.keep_tags], groups[0][data.keep_tags :], []] if whole else [*groups, []][:3]
    if data.shuffle:
        free = [free[place] for place in torch.randperm(len(free), generator=generator).tolist()]
    if data.tag_dropout:
        free = [tag for tag in free if _draw(generator) >= data.tag_dropout]
    return kept + free + last


def tag_name(tag: str) -> str:
    """What a tag says, without emphasis, case and the difference between _ and space."""
    found = _EMPHASIS.fullmatch(tag.strip())
    return tidy((found[1] if found else tag).replace("\\", "").replace("_", " ")).lower()


def _joint(data: Data) -> str:
    return ", " if data.separator.strip() else data.separator or ", "


def _plain(text: str, data: Data) -> str:
    # Taggers escape brackets for a reader of emphasis; where there is none, the backslash itself would be learned
    return tidy(text if data.weights else text.replace("\\", ""))


def _words(words: str) -> str:
    """A pattern for words that do not go on in either direction; \\b would need a letter at their ends."""
    return rf"(?<!\w){re.escape(words)}(?!\w)"


def _draw(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
