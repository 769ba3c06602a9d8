"""Many captions changed at once: what each operation makes of each caption, before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lib_lora.errors import BadConfig
from lib_lora.train.caption_files import lines_of
from lib_lora.train.caption_ops import join_tags, says, split_tags, tag_name, tidy
from lib_lora.train.sections_data import Data

_PLAIN = Data()  # tags separated by commas, brackets read as they stand

OPERATIONS: Mapping[str, str] = {
    "prepend": "Put before",
    "append": "Put after",
    "remove": "Remove tags",
    "replace": "Replace text",
    "replace tag": "Replace a tag",
    "dedupe": "Remove repeated tags",
    "sort": "Sort by frequency",
    "limit": "Keep the first tags",
    "tidy": "Tidy spaces and commas",
}
_NEEDS_TEXT = ("prepend", "append", "remove", "replace", "replace tag")


@dataclass(frozen=True)
class Edit:
    """One operation on captions. `kind` is a key of OPERATIONS.

    `text` is what to put, remove or look for (tags separated by commas; "replace" takes it literally), `instead` what
    to put in its place. `number`: "limit" keeps so many tags, "sort" leaves so many at the beginning where they are.
    """

    kind: str
    text: str = ""
    instead: str = ""
    number: int = 0

    def checked(self) -> Edit:
        """Itself. Raises BadConfig if it cannot be done."""
        if self.kind not in OPERATIONS:
            raise BadConfig(f"{self.kind!r} is no operation on captions; choose one of {', '.join(OPERATIONS)}")
        if self.kind in _NEEDS_TEXT and not self.text.strip():
            raise BadConfig(f"{OPERATIONS[self.kind]!r} needs a text; write one")
        if self.kind == "limit" and self.number < 1:
            raise BadConfig(f"{self.number} tags cannot be kept; give 1 or more")
        if "\n" in self.text + self.instead:
            raise BadConfig("a line end cannot stand in a tag; write one line")
        return self


def edited(captions: Sequence[str], edit: Edit) -> list[str]:
    """The captions after the operation, in their order. Raises BadConfig.

    Each line of a caption (lines are captions to choose from) is changed by itself. A caption that nothing is done to
    stays as it is written, to the last space.
    """
    change = _operation(edit.checked(), captions)
    return [_each_line(caption, change, edit.kind in ("prepend", "append")) for caption in captions]


def _each_line(caption: str, change: Callable[[str], str], fills: bool) -> str:
    lines = lines_of(caption) or (("",) if fills else ())
    changed = [change(line) for line in lines]
    return caption if changed == list(lines) else "\n".join(filter(None, changed))


def _operation(edit: Edit, captions: Sequence[str]) -> Callable[[str], str]:
    """What becomes of one line."""
    text, instead = edit.text.strip(), edit.instead.strip()
    if edit.kind in ("prepend", "append"):
        return lambda line: _joined(line, text, edit.kind == "prepend")
    if edit.kind == "replace":
        return lambda line: tidy(line.replace(edit.text, edit.instead)) if edit.text in line else line
    if edit.kind == "tidy":
        return lambda line: join_tags([tidy(tag) for tag in tags_of(line)], _PLAIN)
    if edit.kind == "limit":
        return lambda line: _of_tags(line, lambda tags: tags[: edit.number])
    if edit.kind == "dedupe":
        return lambda line: _of_tags(line, _once)
    if edit.kind == "sort":
        return _sorter(captions, edit.number)
    unwanted = {tag_name(tag) for tag in tags_of(text)}
    new = tags_of(instead) if edit.kind == "replace tag" else []
    return lambda line: _of_tags(line, lambda tags: _exchanged(tags, unwanted, new))


def tags_of(line: str) -> list[str]:
    """The tags of one line."""
    return split_tags(line, _PLAIN)


def tag_counts(captions: Iterable[str]) -> Counter[str]:
    """How many captions have each tag. Spellings that differ in case, emphasis or _ count as one, the first."""
    spelled: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for caption in captions:
        named: dict[str, str] = {}
        for tag in (tag for line in lines_of(caption) for tag in tags_of(line)):
            named.setdefault(tag_name(tag), tag)
        for name, tag in named.items():
            counts[spelled.setdefault(name, tag)] += 1
    return counts


def _joined(line: str, text: str, before: bool) -> str:
    if says(line, text):
        return line
    return join_tags([part for part in ((text, line) if before else (line.rstrip(" ,"), text)) if part], _PLAIN)


def _of_tags(line: str, change: Callable[[list[str]], list[str]]) -> str:
    tags = tags_of(line)
    changed = change(tags)
    return line if changed == tags else join_tags(changed, _PLAIN)


def _once(tags: list[str]) -> list[str]:
    found: dict[str, str] = {}
    for tag in tags:
        found.setdefault(tag_name(tag), tag)
    return list(found.values())


def _exchanged(tags: list[str], unwanted: set[str], new: list[str]) -> list[str]:
    """Each unwanted tag replaced by the new ones, which then stand there once."""
    if not any(tag_name(tag) in unwanted for tag in tags):
        return tags
    there = {tag_name(tag) for tag in tags} - unwanted
    fresh = [tag for tag in new if tag_name(tag) not in there]
    out: list[str] = []
    for tag in tags:
        if tag_name(tag) not in unwanted:
            out.append(tag)
        else:
            out, fresh = out + fresh, []
    return out


def _sorter(captions: Sequence[str], keep: int) -> Callable[[str], str]:
    """The most frequent tags first; equally frequent ones stay in their order."""
    counts = {tag_name(tag): count for tag, count in tag_counts(captions).items()}

    def order(tags: list[str]) -> list[str]:
        return tags[:keep] + sorted(tags[keep:], key=lambda tag: -counts[tag_name(tag)])

    return lambda line: _of_tags(line, order)
