"""Tags: the built-in's syntax exactly, and errors that quote the tag."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora.errors import BadTag
from lib_lora.prompt import NetworkRequest, extract, parse_arguments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name", NetworkRequest("name", 1.0, 1.0)),
        ("name:0.8", NetworkRequest("name", 0.8, 0.8)),
        ("name:-.5:2", NetworkRequest("name", -0.5, 2.0)),
        ("name:0.5:0.7:8", NetworkRequest("name", 0.5, 0.7, 8)),
        ("name:te=0.2", NetworkRequest("name", 0.2, 0.2)),
        ("name:unet=0.2", NetworkRequest("name", 1.0, 0.2)),
        ("name:0.5:te=0.1:unet=0.3:dyn=4", NetworkRequest("name", 0.1, 0.3, 4)),
        ("te=0.5:name", NetworkRequest("name", 0.5, 0.5)),
        ("a=b=c:0.5", NetworkRequest("a=b=c", 0.5, 0.5)),
        ("sub/my style, v1.5 (final) 猫:1", NetworkRequest("sub/my style, v1.5 (final) 猫")),
    ],
)
def test_forms(text: str, expected: NetworkRequest) -> None:
    assert parse_arguments(text.split(":")) == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", "te=1", "x:heavy", "x:1:nan", "x:inf", "x:1:1:2.5", "x:1:1:0", "x:1:1:1:1", "x:lbww=1", "x:te=", "x:"],
)
def test_bad_tags_are_quoted_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(BadTag) as caught:
        parse_arguments(text.split(":"))
    assert f"<lora:{text}>" in str(caught.value)
    assert "<lora:name:te:unet>" in str(caught.value)


def test_extract_takes_lora_and_lyco_only() -> None:
    rest, requests = extract("a <lora:x:0.5> cat <hypernet:h:1>, <lyco:y><notag> 1 < 2 > 0")
    assert rest == "a  cat <hypernet:h:1>, <notag> 1 < 2 > 0"
    assert requests == [NetworkRequest("x", 0.5, 0.5), NetworkRequest("y")]


@given(st.text())
def test_any_text_gives_a_prompt_or_a_bad_tag(text: str) -> None:
    try:
        rest, requests = extract(text)
    except BadTag:
        return
    assert (rest == text) == (not requests)


@given(st.text(st.characters(exclude_characters=":>=", exclude_categories=("Cs",)), min_size=1), st.floats(-9, 9))
def test_any_name_and_strength_round_trip(name: str, strength: float) -> None:
    if name.strip():
        assert extract(f"<lora:{name}:{strength}>")[1] == [NetworkRequest(name, strength, strength)]
