"""Axes for the webui's X/Y/Z plot: the network, its strength, its block weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lib_lora.errors import BadTag, LoraError
from lib_lora.host.detect import Webui
from lib_lora.host.neighbours import Neighbours
from lib_lora.prompt import find_tags, parse_arguments
from lib_lora.prompt.axes import with_network, with_preset, with_strength
from lib_lora.prompt.blocks import parse_vector

PREFIX = "[LoRA kit] "
NONE = "None"
SCRIPT = "xyz_grid.py"
PROMPTS = ("prompt", "hr_prompt")
Change = Callable[[str, str], str]


def add_axes(webui: Webui, neighbours: Neighbours, names: Callable[[], Sequence[str]]) -> None:
    """Add our axes to the plot's, if it is loaded and they are not among them yet. `names` are the networks."""
    modules = {id(data.module): data.module for data in webui.scripts.scripts_data if data.path.endswith(SCRIPT)}
    for module in modules.values():
        present = {option.label for option in module.axis_options}
        for option in _options(module, neighbours, names):
            if option.label not in present:
                module.axis_options.append(option)


def _options(module: Any, neighbours: Neighbours, names: Callable[[], Sequence[str]]) -> list[Any]:
    def presets() -> list[str]:
        return [NONE, *sorted(neighbours.presets().weights)]

    def require_networks(_p: Any, values: Sequence[str]) -> None:
        known = set(names())
        for value in values:
            if value != NONE and value not in known:
                raise RuntimeError(f"no network is called {value!r}; choose among: {', '.join(sorted(known)[:20])}")

    def require_presets(p: Any, values: Sequence[str]) -> None:
        first_network(p.prompt)
        for value in values:
            if value != NONE and value not in neighbours.presets().weights:
                try:
                    parse_vector(value)
                except ValueError as error:
                    raise RuntimeError(f"{value!r} is no preset and no vector of block weights: {error}") from error

    def require_tag(p: Any, _values: Sequence[Any]) -> None:
        first_network(p.prompt)

    option = module.AxisOption
    return [
        option(f"{PREFIX}Network", str, _network, confirm=require_networks, cost=0.5, choices=lambda: [NONE, *names()]),
        option(f"{PREFIX}Strength", float, _strength, confirm=require_tag, cost=0.2),
        option(f"{PREFIX}Block preset", str, _preset, confirm=require_presets, cost=0.2, choices=presets),
    ]


def networks_in(prompt: str) -> list[str]:
    """The name in each of the prompt's tags."""
    found = []
    for tag in find_tags(prompt):
        try:
            found.append(parse_arguments(tag.items).name)
        except LoraError:  # a preset of the user's, for one; it is named all the same
            found.append(tag.items[0])
    return found


def first_network(prompt: str) -> str:
    """The name in the prompt's first tag. Raises BadTag if there is none."""
    found = networks_in(prompt)
    if not found:
        raise BadTag("this axis changes the prompt's first <lora:...> tag, and there is none; write one")
    return found[0]


def _network(p: Any, value: str, _values: Sequence[str]) -> None:
    """Another network in the first tag, or a tag at the end where there is none; None: no tag."""
    new = None if value == NONE else value
    p.lorakit_no_network = new is None  # then the other axes have nothing to do
    if networks_in(p.prompt):
        _change(p, lambda text, name: with_network(text, name, new))
        return
    for field in PROMPTS:
        if getattr(p, field, None):
            setattr(p, field, with_network(getattr(p, field), None, new))


def _strength(p: Any, value: float, _values: Sequence[float]) -> None:
    _change(p, lambda text, name: with_strength(text, name, value))


def _preset(p: Any, value: str, _values: Sequence[str]) -> None:
    _change(p, lambda text, name: with_preset(text, name, None if value == NONE else value))


def _change(p: Any, change: Change) -> None:
    """Change the prompt's first tag, and in the hires prompt the tag of the same network."""
    if getattr(p, "lorakit_no_network", False) and not networks_in(p.prompt):
        return
    name = first_network(p.prompt)
    for field in PROMPTS:
        text = getattr(p, field, None)
        if isinstance(text, str) and name in networks_in(text):
            setattr(p, field, change(text, name))
