"""Bulk operations on captions, as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora.errors import BadConfig
from lib_lora.train.absorb import absorbed
from lib_lora.train.caption_edit import OPERATIONS, Edit, edited, tag_counts, tags_of

TAGS = "dog, red collar, grass"


def one(caption: str, kind: str, text: str = "", instead: str = "", number: int = 0) -> str:
    return edited([caption], Edit(kind, text, instead, number))[0]


@pytest.mark.parametrize(
    ("caption", "edit", "expected"),
    [
        (TAGS, Edit("prepend", "sks"), "sks, dog, red collar, grass"),
        ("", Edit("prepend", "sks dog"), "sks dog"),
        ("a sks dog on grass", Edit("prepend", "sks"), "a sks dog on grass"),
        ("asks me", Edit("prepend", "sks"), "sks, asks me"),
        (TAGS, Edit("append", "outside"), "dog, red collar, grass, outside"),
        ("dog,", Edit("append", "outside"), "dog, outside"),
        (TAGS, Edit("remove", "Red_Collar"), "dog, grass"),
        (TAGS, Edit("remove", "dog, grass"), "red collar"),
        (TAGS, Edit("remove", "collar"), TAGS),
        ("dog", Edit("remove", "dog"), ""),
        (TAGS, Edit("replace", "red", "blue"), "dog, blue collar, grass"),
        ("a.b", Edit("replace", ".", "-"), "a-b"),
        ("red dog, Red", Edit("replace", "red ", ""), "dog, Red"),
        (TAGS, Edit("replace tag", "dog", "sks dog"), "sks dog, red collar, grass"),
        (TAGS, Edit("replace tag", "dog, grass", "a, b"), "a, b, red collar"),
        (TAGS, Edit("replace tag", "dog", "grass"), "red collar, grass"),
        (TAGS, Edit("replace tag", "do", "x"), TAGS),
        (TAGS, Edit("replace tag", "dog", ""), "red collar, grass"),
        ("dog, Dog, dog_, cat, dog", Edit("dedupe"), "dog, cat"),
        (TAGS, Edit("limit", number=2), "dog, red collar"),
        (" a  dog ,, on   grass,", Edit("tidy"), "a dog, on grass"),
        ("long_hair, x", Edit("remove", "long hair"), "x"),
    ],
)
def test_operations(caption: str, edit: Edit, expected: str) -> None:
    assert edited([caption], edit) == [expected]


def test_sorting_goes_by_the_whole_set_and_leaves_the_beginning() -> None:
    captions = ["rare, dog, grass", "grass, dog", "dog, sky"]
    assert edited(captions, Edit("sort")) == ["dog, grass, rare", "dog, grass", "dog, sky"]
    assert edited(captions, Edit("sort", number=1)) == ["rare, dog, grass", "grass, dog", "dog, sky"]


def test_each_line_is_a_caption_of_its_own() -> None:
    assert one("dog, a\ncat, dog", "remove", "dog") == "a\ncat"
    assert one("dog\na", "remove", "dog") == "a"
    assert one("a\nb", "prepend", "sks") == "sks, a\nsks, b"


@pytest.mark.parametrize("kind", [kind for kind in OPERATIONS if kind not in ("prepend", "append", "tidy")])
@given(st.text(alphabet="ab ,_()\\\n", max_size=30))
def test_what_nothing_is_done_to_stays_to_the_last_space(kind: str, caption: str) -> None:
    edit = Edit(kind, "zzz", "y", 1 if kind == "sort" else 99)
    if kind in ("dedupe", "sort"):
        caption = "  one ,two"
    assert one(caption, kind, edit.text, edit.instead, edit.number) == caption


@pytest.mark.parametrize("kind", list(OPERATIONS))
@given(st.lists(st.text(alphabet="ab c,_\n", max_size=20), max_size=5))
def test_doing_it_twice_changes_nothing_more(kind: str, captions: list[str]) -> None:
    edit = Edit(kind, "b", "c", 2)
    done = edited(captions, edit)
    assert len(done) == len(captions) and edited(done, edit) == done


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (Edit("explode"), "explode"),
        (Edit("prepend", "  "), "needs a text"),
        (Edit("remove"), "needs a text"),
        (Edit("limit", number=0), "0 tags"),
        (Edit("append", "a\nb"), "line"),
        (Edit("replace", "a", "b\nc"), "line"),
    ],
)
def test_what_cannot_be_done_is_refused(edit: Edit, named: str) -> None:
    with pytest.raises(BadConfig, match=named):
        edited([TAGS], edit)


def test_tags_are_counted_once_a_picture_and_in_one_spelling() -> None:
    counts = tag_counts(["Long_Hair, dog, dog", "long hair\ndog", "", "(dog:1.2), cat"])
    assert dict(counts) == {"Long_Hair": 2, "dog": 3, "cat": 1}
    assert counts.most_common(1) == [("dog", 3)]


def test_tags_of_nothing_are_none() -> None:
    assert tags_of(" , ,") == [] and tag_counts([]) == {}


CAPTIONS = [
    "sks dog, dog, red collar, brown fur, grass, solo",
    "sks dog, dog, red_collar, brown fur, sofa, solo",
    "sks dog, dog, red collar, brown fur, simple background, solo",
    "sks dog, dog, red collar, beach, solo",
    "",
]


def test_the_subjects_own_frequent_tags_are_proposed_first() -> None:
    found = absorbed(CAPTIONS, "sks", "dog")
    assert [(one.tag, one.count, one.of_subject) for one in found] == [
        ("red collar", 4, True),
        ("brown fur", 3, True),
        ("solo", 4, False),
    ]
    assert [one.share for one in found] == [1.0, 0.75, 1.0]


def test_the_share_decides_and_trigger_and_class_stay() -> None:
    assert [one.tag for one in absorbed(CAPTIONS, "sks", "dog", 0.9)] == ["red collar", "solo"]
    assert "dog" in [one.tag for one in absorbed(CAPTIONS, "sks", "")]
    assert "sks dog" in [one.tag for one in absorbed(CAPTIONS, "", "dog")]


def test_one_caption_proposes_nothing() -> None:
    assert absorbed(["a, b"], "", "") == [] and absorbed([], "", "") == []
