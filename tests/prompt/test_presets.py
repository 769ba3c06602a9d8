"""Preset files: the format of lora-block-weight, and what is in them that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora.errors import BadFile, BadTag
from lib_lora.prompt import Presets, parse_arguments
from lib_lora.prompt.elements import Rule


def vector(*ranges: tuple[int, int], slots: int = 17) -> str:
    return ",".join("1" if any(a <= i <= b for a, b in ranges) else "0" for i in range(slots))


def test_the_usual_presets_are_there() -> None:
    weights = Presets().weights
    assert dict(weights) == {
        "NONE": vector(),
        "ALL": vector((0, 16)),
        "INS": vector((0, 3)),
        "IND": vector((0, 0), (4, 6)),
        "INALL": vector((0, 6)),
        "MIDD": vector((0, 0), (4, 11)),
        "OUTD": vector((0, 0), (8, 11)),
        "OUTS": vector((0, 0), (12, 16)),
        "OUTALL": vector((0, 0), (8, 16)),
        "ALL0.5": ",".join(["0.5"] * 17),
        "FLUXALL": ",".join(["1"] * 61),
    }
    deep = ("IN05", "IN06", "IN07", "IN08", "IN09", "IN10", "IN11", "M00")
    deep += ("OUT00", "OUT01", "OUT02", "OUT03", "OUT04", "OUT05")
    assert dict(Presets().elements) == {
        "ATTNDEEPON": (Rule(deep, ("attn",), 1.0),),
        "ATTNDEEPOFF": (Rule(deep, ("attn",), 0.0),),
        "PROJDEEPOFF": (Rule(deep, ("proj",), 0.0),),
        "XYZ": (Rule((), (), 1.0),),
    }


def test_a_file_of_weights(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    lines = [
        "",
        "# a comment: 1,2",
        f" MINE : {vector((0, 0))}",
        "SHORT:1,0",
        f"INS:{vector((1, 1))}",
        "WORDS:" + ",".join(["a"] * 12),
        "no colon",
        "ROUT:" + ",".join(["X"] * 8 + ["R"] * 9),
    ]
    file.write_text("\r\n".join(lines), encoding="utf-8-sig")
    presets = Presets.load(file)
    assert presets.weights["MINE"] == vector((0, 0))
    assert presets.weights["INS"] == vector((1, 1)), "the user's own counts"
    assert presets.weights["OUTS"] == Presets().weights["OUTS"]
    assert "SHORT" not in presets.weights and "WORDS" not in presets.weights
    assert [line.partition(":")[0] for line in presets.skipped] == [f"mine.txt, line {n}" for n in (4, 6, 7)]
    request = parse_arguments(["cat", "0.5", "ROUT", "0.25"], presets)
    assert request.blocks is not None and request.blocks.entries == (0.25,) * 8 + ("R",) * 9


def test_a_folder_with_both_files(tmp_path: Path) -> None:
    (tmp_path / "lbwpresets.txt").write_text(f"A:{vector()}\n")
    text = "ONE:IN05-IN06:attn:0.5,M00::2\n\n# why\nTWO:NOT BASE:proj:0\nBASE:mlp:0.1\n   \nBROKEN:attn:1\n\n:::1\n"
    (tmp_path / "elempresets.txt").write_text(text)
    presets = Presets.load(tmp_path)
    assert presets.weights["A"] == vector()
    assert presets.elements["ONE"] == (Rule(("IN05", "IN06"), ("attn",), 0.5), Rule(("M00",), (), 2.0))
    assert presets.elements["TWO"] == (Rule(("BASE",), ("proj",), 0.0, True), Rule(("BASE",), ("mlp",), 0.1))
    assert len(presets.skipped) == 2 and "'BROKEN'" in presets.skipped[0] and "without a name" in presets.skipped[1]
    assert parse_arguments(["cat", "lbwe=TWO"], presets).elements == presets.elements["TWO"]


def test_later_places_count_and_none_need_be_there(tmp_path: Path) -> None:
    for name, kind in (("a", vector()), ("b", vector((3, 3)))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lbwpresets.txt").write_text(f"P:{kind}")
    assert Presets.load(tmp_path / "a", tmp_path / "b").weights["P"] == vector((3, 3))
    assert Presets.load(tmp_path / "nowhere.txt", tmp_path) == Presets()


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    file = tmp_path / "lbwpresets.txt"
    file.write_bytes(b"A:1,\xff\xfe")
    with pytest.raises(BadFile, match="lbwpresets.txt"):
        Presets.load(tmp_path)


def test_an_unknown_preset_names_similar_ones() -> None:
    for tag in ("cat:1:OUTAL", "cat:lbw=OUTAL"):
        with pytest.raises(BadTag, match="OUTALL"):
            parse_arguments(tag.split(":"))
    with pytest.raises(BadTag, match="ATTNDEEPON"):
        parse_arguments(["cat", "lbwe=ATTNDEEP"])
