"""Tags: the built-in's syntax exactly, those of other extensions on top, and errors that quote the tag."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora.errors import BadTag
from lib_lora.prompt import NetworkRequest, Presets, Schedule, extract, find_tags, format_tag, parse_arguments
from lib_lora.prompt.blocks import IDS, LAYOUTS, BlockWeights
from lib_lora.prompt.elements import Rule
from lib_lora.prompt.grammar import NAMED

UP = Schedule(((0.0, 0.0), (1.0, 1.0)))
DOWN = Schedule(((0.0, 1.0), (1.0, 0.0)))


def middle(switches: str) -> BlockWeights:
    return BlockWeights(tuple(map(float, switches)))


MIDD = middle("10001111111100000")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # the built-in's
        ("name", NetworkRequest("name", 1.0, 1.0)),
        ("name:0.8", NetworkRequest("name", 0.8, 0.8)),
        ("name:-.5:2", NetworkRequest("name", -0.5, 2.0)),
        ("name:0.5:0.7:8", NetworkRequest("name", 0.5, 0.7, 8)),
        ("name:te=0.2", NetworkRequest("name", 0.2, 0.2)),
        ("name:unet=0.2", NetworkRequest("name", 1.0, 0.2)),
        ("name:0.5:te=0.1:unet=0.3:dyn=4", NetworkRequest("name", 0.1, 0.3, 4)),
        ("te=0.5:name", NetworkRequest("name", 0.5, 0.5)),
        ("name:te=0.5:te=0.6", NetworkRequest("name", 0.6, 0.6)),
        ("a=b=c:0.5", NetworkRequest("a=b=c", 0.5, 0.5)),
        ("sub/my style, v1.5 (final) 猫:1", NetworkRequest("sub/my style, v1.5 (final) 猫")),
        ("v=2:0.5", NetworkRequest("v=2", 0.5, 0.5)),  # the built-in takes 0.5 for the name
        # loractl's
        ("name:0@0,1@1", NetworkRequest("name", UP, UP)),
        ("name:0.5:hr=1", NetworkRequest("name", 0.5, 0.5, hr_te=1.0, hr_unet=1.0)),
        ("name:0@0,1@1:hr=1@0,0@1", NetworkRequest("name", UP, UP, hr_te=DOWN, hr_unet=DOWN)),
        ("name:te=1:unet=0@0,1@1", NetworkRequest("name", 1.0, UP)),
        ("name:1:0@0;1~1", NetworkRequest("name", 1.0, UP)),
        ("name:0.5:0.7:hrte=0.1", NetworkRequest("name", 0.5, 0.7, hr_te=0.1)),
        ("name:0.4:hr=0.9:hrunet=0.2", NetworkRequest("name", 0.4, 0.4, hr_te=0.9, hr_unet=0.2)),
        # SD.Next's
        ("name:0.5:in=0.1:mid=0@0,1@1", NetworkRequest("name", 0.5, 0.5, groups=(0.1, UP, None))),
        ("name:out=0", NetworkRequest("name", groups=(None, None, 0.0))),
        # block weight's
        ("name:0.5:MIDD", NetworkRequest("name", 0.5, 0.5, blocks=MIDD)),
        ("name:0.5:0.7:lbw=MIDD", NetworkRequest("name", 0.5, 0.7, blocks=MIDD)),
        ("name:w=MIDD", NetworkRequest("name", blocks=MIDD)),
        ("name:lbw=MIDD:w=INS", NetworkRequest("name", blocks=MIDD)),
        ("name:1:INS:lbw=MIDD", NetworkRequest("name", blocks=MIDD)),
        ("name:1:1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0", NetworkRequest("name", blocks=MIDD)),
        ("name:lbw= 1, 0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0", NetworkRequest("name", blocks=MIDD)),
        ("name:1:MIDD:unet=0.5:dyn=4", NetworkRequest("name", 1.0, 0.5, 4, blocks=MIDD)),
        ("name:lbwe=IN05/attn/0.5", NetworkRequest("name", elements=(Rule(("IN05",), ("attn",), 0.5),))),
        ("name:start=5", NetworkRequest("name", start=5)),
        ("name:stop=5", NetworkRequest("name", stop=5)),
        ("name:step=3-8", NetworkRequest("name", start=3, stop=8)),
        ("name:start=1:step=3-8:stop=9", NetworkRequest("name", start=3, stop=8)),
        ("name:1:1:lbw=MIDD:stop=10", NetworkRequest("name", blocks=MIDD, stop=10)),
    ],
)
def test_forms(text: str, expected: NetworkRequest) -> None:
    assert parse_arguments(text.split(":")) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["names no network", "<lora:name:te:unet>", "lbw="]),
        (" ", ["names no network"]),
        ("te=1", ["names no network"]),
        ("x:1:1:1:1", ["5 positional", "<lora:name:te:unet:dyn>"]),
        ("x:lbww=1", ["lbww= is not known", "lbwe="]),
        ("x:region=left", ["region= is not known"]),
        ("x:heavy", ["te: 'heavy' is not a number", "te=0@0,1@0.5"]),
        ("x:inf", ["te: 'inf' is not a usable", "te=0.8"]),
        ("x:", ["te: ''"]),
        ("x:te=", ["te: ''"]),
        ("x:1:1@", ["unet: ''", "unet=0@0,1@0.5"]),
        ("x:1:nan", ["'nan' is neither a strength nor a preset", "OUTALL", "unet=0.8", "lbw=INALL", "17"]),
        ("x:1:1:2.5", ["dyn: '2.5' is not a whole number", "dyn=10"]),
        ("x:1:1:0", ["dyn: '0' is below 1"]),
        ("x:hr=1,2", ["hr: '1' is not of the form strength@step", "hr=0@0,1@0.5"]),
        ("x:in=low", ["in: 'low'", "in=0.8"]),
        ("x:lbw=1,0", ["lbw: '1,0' has 2 weights", "61"]),
        ("x:1:1,0", ["lbw: '1,0' has 2 weights"]),
        ("x:1:MIDD:0.5:2", ["5 positional"]),
        ("x:1:MIDD:NOSUCH", ["lbwe: there is no preset 'NOSUCH'", "blocks/elements/ratio"]),
        ("x:lbw=MIDD:x=big", ["x: 'big' is not a number", "x=0.7"]),
        ("x:lbwe=IN05-IN99/attn/1", ["lbwe: 'IN05-IN99' is not a range"]),
        ("x:start=0.5", ["start: '0.5' is not a whole number", "start=10"]),
        ("x:stop=-1", ["stop: '-1' is below 0"]),
        ("x:step=5", ["step: '5' does not say", "step=5-10"]),
        ("x:step=8-3", ["stops at 3 before it starts at 8"]),
        ("x:start=8:stop=3", ["stops at 3 before it starts at 8"]),
    ],
)
def test_bad_tags_are_quoted_with_the_forms_of_the_argument(text: str, parts: list[str]) -> None:
    with pytest.raises(BadTag) as caught:
        parse_arguments(text.split(":"))
    assert f"<lora:{text}>" in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_every_tag_in_the_manual_can_be_read() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "syntax.md").read_text(encoding="utf-8")
    presets = Presets({**Presets().weights, "MINE": ",".join(["X"] * 17)})
    tags = [tag for tag in find_tags(manual) if tag.items[0] == "cat"]
    assert len(tags) > 25
    written = {item.partition("=")[0] for tag in tags for item in tag.items if "=" in item}
    assert written >= set(NAMED) - {"w", "te", "hrte", "mid", "out", "start"}
    for tag in tags:
        assert parse_arguments(tag.items, presets).name == "cat"


def test_extract_takes_its_kinds_only() -> None:
    rest, requests = extract("a <lora:x:0.5> cat <hypernet:h:1>, <lyco:y><notag> 1 < 2 > 0<loractl:z:lbw=MIDD>")
    assert rest == "a  cat <hypernet:h:1>, <notag> 1 < 2 > 0"
    assert requests == [NetworkRequest("x", 0.5, 0.5), NetworkRequest("y"), NetworkRequest("z", blocks=MIDD)]


def test_tags_are_found_where_they_stand() -> None:
    prompt = "a <lora:x:0.5> b <hypernet:h> <lyco:y:te=1>"
    assert [(t.kind, t.items, prompt[t.start : t.stop]) for t in find_tags(prompt)] == [
        ("lora", ("x", "0.5"), "<lora:x:0.5>"),
        ("lyco", ("y", "te=1"), "<lyco:y:te=1>"),
    ]


@given(st.text())
def test_any_text_gives_a_prompt_or_a_bad_tag(text: str) -> None:
    try:
        rest, requests = extract(text)
    except BadTag:
        return
    assert (rest == text) == (not requests)


WORDS = """x te= unet= hr= in= lbw= lbwe= x= start= stop= step= dyn= = 0 1 0.5 -1 @ ~ , ; - / : + 5-10
    MIDD ATTNDEEPON IN05 NOT R U X 1,1,1,1,1,1,1,1,1,1,1,1 0@0,1@1 nan 1e9 猫"""
pieces = st.sampled_from(WORDS.split())


@given(st.lists(pieces, max_size=14).map("".join))
def test_parsing_raises_nothing_but_bad_tag(text: str) -> None:
    try:
        request = parse_arguments(text.split(":"))
    except BadTag as error:
        assert f"<lora:{text}>" in str(error)
    else:
        assert extract(format_tag(request)) == ("", [request])


numbers = st.floats(-9, 9)
schedules = st.lists(st.tuples(st.floats(0, 50), numbers), min_size=1, max_size=4).map(
    lambda points: Schedule(tuple(sorted(points, key=lambda point: point[0])))
)
strengths = st.one_of(numbers, schedules)
entries = st.one_of(numbers, st.sampled_from(["R", "U"]))
blocks = st.sampled_from(sorted(LAYOUTS)).flatmap(
    lambda n: st.lists(entries, min_size=n, max_size=n).map(lambda e: BlockWeights(tuple(e)))
)
tokens = st.lists(st.sampled_from([*IDS, "attn", "proj"]), max_size=3).map(tuple)
elements = st.lists(st.builds(Rule, tokens, tokens, numbers), max_size=3).map(tuple)
spans = st.tuples(st.integers(0, 60), st.none() | st.integers(0, 60)).filter(lambda s: s[1] is None or s[0] <= s[1])
names = st.text(st.characters(exclude_characters=":>", exclude_categories=("Cs",)), min_size=1).filter(
    lambda name: bool(name.strip()) and name.count("=") != 1
)


@st.composite
def requests(draw: st.DrawFn) -> NetworkRequest:
    start, stop = draw(spans)
    return NetworkRequest(
        name=draw(names | st.just("v=2")),
        te=draw(strengths),
        unet=draw(strengths),
        dyn=draw(st.none() | st.integers(1, 999)),
        hr_te=draw(st.none() | strengths),
        hr_unet=draw(st.none() | strengths),
        groups=draw(st.tuples(*[st.none() | strengths] * 3)),
        blocks=draw(st.none() | blocks),
        elements=draw(elements),
        start=start,
        stop=stop,
    )


@given(requests(), st.sampled_from(["lora", "lyco"]))
def test_every_request_can_be_written_and_read_back(request: NetworkRequest, kind: str) -> None:
    tag = format_tag(request, kind)
    assert tag.startswith(f"<{kind}:")
    assert extract(f"a {tag} b") == ("a  b", [request])
    assert hash(extract(tag)[1][0]) == hash(request)


@pytest.mark.parametrize("name", ["", " ", "a:b", "a>b", "te=0.5"])
def test_names_that_no_tag_can_hold(name: str) -> None:
    with pytest.raises(BadTag, match="cannot stand in a tag"):
        format_tag(NetworkRequest(name))
