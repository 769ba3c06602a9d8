"""Changing one thing about a tag inside a prompt's text: what an X/Y/Z plot does for each of its pictures."""

from __future__ import annotations

from collections.abc import Callable

from lib_lora.errors import BadTag
from lib_lora.prompt.grammar import FORMS, NAMED, find_tags, is_named, is_strength, require_name
from lib_lora.prompt.schedule import format_number, parse_strength

Edit = Callable[[list[str]], "list[str] | None"]


def with_network(prompt: str, old: str | None, new: str | None) -> str:
    """The prompt with network `new` in the tags of `old`, strengths and all else kept.

    `old` None: with a further tag `<lora:new>` at the end. `new` None: without the tags of `old`.
    Raises BadTag if no tag names `old`, or if a tag cannot hold the name `new`.
    """
    if new is not None:
        require_name(new)
    if old is None:
        return prompt if new is None else f"{prompt}<lora:{new}>"

    def edit(items: list[str]) -> list[str] | None:
        if new is None:
            return None
        del items[_positional(items)[0]]
        return [new, *items]  # in front, where a name like a=b is one

    return _edited(prompt, old, edit)


def with_strength(prompt: str, name: str, strength: float | str) -> str:
    """The prompt with `strength`, a number or a schedule `w@s,...`, for text encoders and UNet in the tags of `name`.

    What a tag sets apart (`hr=`, `in=`, blocks) is kept. Raises BadTag if no tag names it, or for another strength.
    """
    text = strength if isinstance(strength, str) else format_number(strength)
    try:
        parse_strength(text)
    except ValueError as error:
        raise BadTag(f"the strength cannot be used: {error}. Write {NAMED['te']}") from error

    def edit(items: list[str]) -> list[str]:
        places = _positional(items)
        if len(places) > 1:
            items[places[1]] = text
        if len(places) > 2 and is_strength(items[places[2]]):
            items[places[2]] = text
        if len(places) == 1:
            items.insert(places[0] + 1, text)
        return _without(items, "te", "unet")

    return _edited(prompt, name, edit)


def with_preset(prompt: str, name: str, preset: str | None) -> str:
    """The prompt with block weights `preset`, a name or a vector, in the tags of `name`; None: with none.

    Raises BadTag if no tag names it, or if a tag cannot hold the preset.
    """
    if preset is not None and (not preset.strip() or any(sign in preset for sign in ":=>")):
        raise BadTag(f"the block weights {preset!r} cannot stand in a tag. Write {NAMED['lbw']}")

    def edit(items: list[str]) -> list[str]:
        places = _positional(items)
        if len(places) > 2 and not is_strength(items[places[2]]):
            if len(places) > 3:
                fourth = items[places[3]]
                items[places[3]] = f"{'x' if is_strength(fourth) else 'lbwe'}={fourth}"
            del items[places[2]]
        items = _without(items, "lbw", "w")
        return items if preset is None else [*items, f"lbw={preset}"]

    return _edited(prompt, name, edit)


def _edited(prompt: str, name: str, edit: Edit) -> str:
    """The prompt with `edit` done to the items of every tag of `name`; None takes the tag out."""
    pieces, end, found = [], 0, False
    names: list[str] = []
    for tag in find_tags(prompt):
        items = list(tag.items)
        places = _positional(items)
        named = items[places[0]] if places else ""
        names.append(named)
        if named != name:
            continue
        edited = edit(items)
        found = True
        pieces += [prompt[end : tag.start], "" if edited is None else f"<{tag.kind}:{':'.join(edited)}>"]
        end = tag.stop
    if not found:
        there = f"there are: {', '.join(dict.fromkeys(names))}" if names else f"add one: {FORMS}"
        raise BadTag(f"the prompt has no tag of network {name!r}; {there}")
    return "".join([*pieces, prompt[end:]])


def _positional(items: list[str]) -> list[int]:
    return [i for i, item in enumerate(items) if not is_named(item, first=i == 0)]


def _without(items: list[str], *keys: str) -> list[str]:
    return [item for i, item in enumerate(items) if not (is_named(item, i == 0) and item.partition("=")[0] in keys)]
