"""Panels: what is asked, what is sent, and what is not sent again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from lib_lora.ui.live import Panel, Request, act, mark_of


def said(**facts: Any) -> str:
    return json.dumps(facts)


def values(updates: list[Any]) -> list[Any]:
    return [update.get("value") for update in updates]


def test_only_what_differs_is_sent() -> None:
    panel = Panel("x", {"one": "", "two": "", "three": ""})
    parts = {"one": "<p>1</p>", "two": "<p>2</p>"}
    seen = {"one": mark_of("<p>1</p>"), "two": mark_of("<p>old</p>"), "three": "gone"}
    one, two, three, beat = values(panel.respond(said(seen=seen, beat=7), lambda request: parts))
    assert one is None and three is None
    assert two == panel.source("two", "<p>2</p>") and ">&lt;p&gt;2&lt;/p&gt;<" in two and mark_of("<p>2</p>") in two
    assert 'data-lk-beat="7"' in beat


def test_answer_gets_what_was_asked() -> None:
    asked: list[Request] = []

    def answer(request: Request) -> Mapping[str, str]:
        asked.append(request)
        return {}

    Panel("x", {}).respond(said(view={"run": "a"}, do={"do": "pause"}, beat=2), answer)
    assert asked == [Request({}, {"run": "a"}, {"do": "pause"}, 2)]


@pytest.mark.parametrize("text", ["", "[]", "5", "{", None, {"do": {}}, "[" * 100_000, '{"seen": [1], "beat": "x"}'])
def test_nonsense_counts_as_not_said(text: Any) -> None:
    assert Request.read(text) == Request()


def test_regions_travel_inert_and_come_with_places() -> None:
    import gradio as gr

    with gr.Blocks() as blocks:
        button = Panel("x", {"one": "<b>1</b>"}).add(lambda request: {})
    assert button.elem_id == "lorakit_x_refresh"
    config = json.dumps(blocks.get_config_file(), default=str)
    assert 'id=\\"lorakit_one\\"' in config
    assert "&lt;b&gt;1&lt;/b&gt;</div>" in config and "<b>1</b>" not in config
    (event,) = blocks.get_config_file()["dependencies"]
    assert event["queue"] is False
    assert event["api_name"] in (False, None) or event["api_visibility"] == "private"
    assert "lorakit.request('x')" in (event.get("js") or event.get("_js"))


def test_what_is_told_twice_is_sent_twice() -> None:
    """The page takes messages back after a while, and gradio sends nothing that is as it was."""
    first, second = (act({"do": "pause"}, {"pause": lambda do: "Pausing."}) for _ in range(2))
    assert "Pausing." in first and mark_of(first) != mark_of(second)
    assert act({"do": "quiet"}, {"quiet": lambda do: ""}) == ""
    assert "lk-bad" in act({"do": "nothing"}, {})
