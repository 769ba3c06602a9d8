"""Changing one thing in one tag: the rest of the prompt stays to the letter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora.errors import BadTag
from lib_lora.prompt import NetworkRequest, extract, find_tags
from lib_lora.prompt.axes import with_network, with_preset, with_strength

PROMPT = "a <lora:cat:0.5> and <lyco:dog:0.3:0.4:lbw=MIDD>, <lora:cat:te=1:unet=0.2:stop=5> <hypernet:cat:1>"


def test_a_network_is_replaced_added_or_taken_out() -> None:
    assert with_network(PROMPT, "cat", "my fox, v1.5 (x)") == PROMPT.replace("lora:cat", "lora:my fox, v1.5 (x)")
    assert with_network(PROMPT, None, "fox") == PROMPT + "<lora:fox>"
    assert with_network(PROMPT, None, None) == PROMPT
    assert with_network(PROMPT, "dog", None) == PROMPT.replace("<lyco:dog:0.3:0.4:lbw=MIDD>", "")
    assert with_network("<lora:te=0.5:cat>", "cat", "v=2") == "<lora:v=2:te=0.5>"


def test_a_strength_is_replaced() -> None:
    assert with_strength(PROMPT, "dog", 0.9) == PROMPT.replace("0.3:0.4", "0.9:0.9")
    changed = with_strength(PROMPT, "cat", "0@0,1@1")
    assert changed == PROMPT.replace("cat:0.5", "cat:0@0,1@1").replace("te=1:unet=0.2:stop", "0@0,1@1:stop")
    assert with_strength("<lora:a>", "a", 1) == "<lora:a:1>"
    assert with_strength("<lora:a:1:OUTS:0.5>", "a", 0.25) == "<lora:a:0.25:OUTS:0.5>"
    assert with_strength("<lora:a:1:2:8>", "a", 0.25) == "<lora:a:0.25:0.25:8>"
    assert with_strength("<lora:te=1:a:in=0.5>", "a", 0.25) == "<lora:a:0.25:in=0.5>"


def test_block_weights_are_replaced() -> None:
    assert with_preset(PROMPT, "dog", "OUTS") == PROMPT.replace("MIDD", "OUTS")
    assert with_preset(PROMPT, "dog", None) == PROMPT.replace(":lbw=MIDD", "")
    assert with_preset("<lora:a:1>", "a", "1,0,R") == "<lora:a:1:lbw=1,0,R>"
    assert with_preset("<lora:a:1:OUTS>", "a", "INS") == "<lora:a:1:lbw=INS>"
    assert with_preset("<lora:a:1:OUTS:0.5:w=INS>", "a", None) == "<lora:a:1:x=0.5>"
    assert with_preset("<lora:a:1:OUTS:ATTNDEEPON>", "a", "INS") == "<lora:a:1:lbwe=ATTNDEEPON:lbw=INS>"
    assert with_preset("<lora:a:1:0.5:8>", "a", "INS") == "<lora:a:1:0.5:8:lbw=INS>"


def test_a_network_that_is_not_there_is_told_with_those_that_are() -> None:
    for change in (lambda: with_network(PROMPT, "fox", "x"), lambda: with_strength(PROMPT, "fox", 1)):
        with pytest.raises(BadTag, match="'fox'; there are: cat, dog"):
            change()
    with pytest.raises(BadTag, match="no tag of network 'cat'; add one"):
        with_preset("a cat", "cat", "INS")


@pytest.mark.parametrize("name", ["a:b", "a>", "", "te=1"])
def test_names_that_no_tag_can_hold_are_refused(name: str) -> None:
    with pytest.raises(BadTag, match="cannot stand"):
        with_network(PROMPT, "cat", name)


@pytest.mark.parametrize("strength", ["strong", "1,2", "nan", "1:2", ""])
def test_strengths_that_are_none_are_refused(strength: str) -> None:
    with pytest.raises(BadTag, match="te=0.8"):
        with_strength(PROMPT, "cat", strength)


@pytest.mark.parametrize("preset", ["", " ", "a:b", "a=b", "a>"])
def test_presets_that_no_tag_can_hold_are_refused(preset: str) -> None:
    with pytest.raises(BadTag, match="cannot stand"):
        with_preset(PROMPT, "cat", preset)


names = st.text(st.characters(exclude_characters=":><=", exclude_categories=("Cs",)), min_size=1).filter(str.strip)
texts = st.text(st.characters(exclude_characters="<>", exclude_categories=("Cs",)), max_size=8)
arguments = st.sampled_from(
    [
        "",
        ":0.5",
        ":0.5:0.7",
        ":te=0.5",
        ":0.5:lbw=INS",
        ":1:OUTS",
        ":1:OUTS:0.5",
        ":0.5:0.7:4",
        ":0@0,1@1:hr=2",
        ":stop=5",
    ]
)


@st.composite
def prompts(draw: st.DrawFn) -> tuple[str, list[str]]:
    used = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    prompt = draw(texts)
    for name in draw(st.permutations(used * 2)):
        prompt += f"<{draw(st.sampled_from(['lora', 'lyco']))}:{name}{draw(arguments)}>{draw(texts)}"
    return prompt, used


def without(prompt: str, *gone: str) -> list[str]:
    """The pieces of a prompt round the tags of some networks."""
    pieces, end = [], 0
    for tag in find_tags(prompt):
        if tag.items[0] in gone:
            pieces.append(prompt[end : tag.start])
            end = tag.stop
    return [*pieces, prompt[end:]]


def of(prompt: str, name: str) -> list[NetworkRequest]:
    return [request for request in extract(prompt)[1] if request.name == name]


@given(prompts(), names)
def test_only_the_name_changes(given_prompt: tuple[str, list[str]], new: str) -> None:
    prompt, (old, *others) = given_prompt
    if new in (old, *others):
        return
    changed = with_network(prompt, old, new)
    assert without(changed, new) == without(prompt, old)
    assert with_network(changed, new, old) == prompt
    assert "".join(without(prompt, old)) == with_network(prompt, old, None)


@given(prompts(), st.floats(-5, 5))
def test_only_the_strength_changes(given_prompt: tuple[str, list[str]], strength: float) -> None:
    prompt, (name, *_) = given_prompt
    changed = with_strength(prompt, name, strength)
    assert without(changed, name) == without(prompt, name)
    for before, after in zip(of(prompt, name), of(changed, name), strict=True):
        assert (after.te, after.unet) == (strength, strength)
        assert (after.blocks, after.dyn, after.hr_unet, after.stop) == (
            before.blocks,
            before.dyn,
            before.hr_unet,
            before.stop,
        )


@given(prompts(), st.sampled_from(["INS", "ALL0.5", "0.5,0,1,1,1,1,1,1,1,1,1,1", None]))
def test_only_the_block_weights_change(given_prompt: tuple[str, list[str]], preset: str | None) -> None:
    prompt, (name, *_) = given_prompt
    changed = with_preset(prompt, name, preset)
    assert without(changed, name) == without(prompt, name)
    wanted = extract("<lora:x>" if preset is None else f"<lora:x:lbw={preset}>")[1][0].blocks
    for before, after in zip(of(prompt, name), of(changed, name), strict=True):
        assert after.blocks == wanted
        assert (after.te, after.unet, after.dyn, after.hr_unet, after.stop) == (
            before.te,
            before.unet,
            before.dyn,
            before.hr_unet,
            before.stop,
        )
