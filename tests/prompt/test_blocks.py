"""Block weights: expected figures are those that lora-block-weight itself computes for the built-in's layer names."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey
from lib_lora.keys.text_encoder import text_encoder_paths
from lib_lora.keys.unet import NATIVE, unet_paths
from lib_lora.prompt import Presets, parse_arguments
from lib_lora.prompt.blocks import FLUX_IDS, IDS, LAYOUTS, BlockWeights, block_of, expand_range, parse_vector
from lib_lora.prompt.elements import parse_rules

SD1 = (
    "te1:text_model.encoder.layers.0.self_attn.q_proj",
    "conv_in",  # IN00
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",  # IN01
    "down_blocks.0.downsamplers.0.conv",  # IN03
    "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k",  # IN05
    "down_blocks.3.resnets.1.conv2",  # IN11
    "mid_block.attentions.0.proj_in",  # M00
    "mid_block.resnets.1.conv1",  # M00
    "up_blocks.0.resnets.0.time_emb_proj",  # OUT00
    "up_blocks.0.upsamplers.0.conv",  # OUT02
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",  # OUT03
    "up_blocks.1.upsamplers.0.conv",  # OUT05
    "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_out.0",  # OUT11
    "time_embedding.linear_1",  # outside
    "conv_out",  # outside
)
SDXL = (
    "te1:text_model.encoder.layers.0.mlp.fc1",
    "te2:text_model.encoder.layers.31.mlp.fc1",
    "conv_in",  # IN00
    "down_blocks.0.resnets.1.conv1",  # IN02
    "down_blocks.0.downsamplers.0.conv",  # IN03
    "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q",  # IN04
    "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_v",  # IN08
    "mid_block.attentions.0.transformer_blocks.9.ff.net.2",  # M00
    "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",  # OUT00
    "up_blocks.0.upsamplers.0.conv",  # OUT02
    "up_blocks.1.attentions.2.proj_out",  # OUT05
    "up_blocks.2.resnets.2.conv_shortcut",  # OUT08
    "add_embedding.linear_1",  # outside
    "conv_out",  # outside
)


def tenths(count: int) -> str:
    return ",".join(str(i / 10) for i in range(1, count + 1))


XX = "X,1,1,1,X+0.2,X-0.3,1,1,1,1,1,1,X,X,X,X,X"
RULES = {
    "E1": "NOT IN05-OUT05:attn:0.25",
    "E2": "OUT03 OUT04:NOT attn1 ff:0.5,BASE:mlp:0.1\nM00::2",
    "E4": "IN00-IN11:in_layers emb_layers:0.3",
    "E5": ":skip_connection op:0.4",
    "E6": "NOT BASE:NOT proj:0",
}
PRESETS = Presets(
    {**Presets().weights, "XX": XX}, {**Presets().elements, **{name: parse_rules(text) for name, text in RULES.items()}}
)
FACTS: list[tuple[str, tuple[str, ...], list[float]]] = [
    ("a:0.5:1:lbw=MIDD", SD1, [0.5, 0, 0, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1]),
    ("a:1:1:lbw=OUTALL", SD1, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]),
    ("a:1:1:lbw=INS", SD1, [1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]),
    (f"a:1:lbw={tenths(12)}", SD1, [0.1, 0, 0, 0, 0.3, 0, 0.6, 0.6, 0.7, 0.9, 1.0, 1.2, 0, 1, 1]),
    (f"a:1:lbw={tenths(17)}", SD1, [0.1, 0, 0.2, 0, 0.5, 0, 0.8, 0.8, 0, 0, 0.9, 1.1, 1.7, 1, 1]),
    (f"a:1:lbw={tenths(20)}", SD1, [0.1, 0.2, 0.3, 0.5, 0.7, 0, 1.1, 1.1, 1.2, 1.4, 1.5, 1.7, 0, 1, 1]),
    (f"a:2:lbw={tenths(26)}", SD1, [0.2, 0.4, 0.6, 1.0, 1.4, 2.6, 2.8, 2.8, 3.0, 3.4, 3.6, 4.0, 5.2, 2, 2]),
    ("a:1:1:lbw=XX:x=0.7", SD1, [0.7, 0, 1, 0, 0.9, 0, 1, 1, 0, 0, 1, 1, 0.7, 1, 1]),
    ("a:1:XX:0.7", SD1, [0.7, 0, 1, 0, 0.9, 0, 1, 1, 0, 0, 1, 1, 0.7, 1, 1]),
    ("a:1:1:lbw=XX", SD1, [1, 0, 1, 0, 1.2, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1]),
    ("a:1:1:lbw=MIDD:lbwe=ATTNDEEPOFF", SD1, [1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1]),
    ("a:1:MIDD:ATTNDEEPOFF", SD1, [1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1]),
    ("a:1:1:lbwe=PROJDEEPOFF", SD1, [1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1]),
    ("a:1:1:lbwe=XYZ:lbw=NONE", SD1, [1] * 15),
    ("a:1:1:lbwe=E1", SD1, [0.25, 1, 0.25, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.25, 1, 1]),
    ("a:1:1:lbwe=E2:lbw=INALL", SD1, [1, 0, 1, 0, 1, 0, 2, 2, 0, 0, 0, 0, 0, 1, 1]),
    ("a:1:1:lbwe=E5", SD1, [1, 1, 1, 0.4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ("a:1:1:lbwe=E6", SD1, [1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]),
    ("a:0.5:1:lbw=MIDD", SDXL, [0.5, 0.5, 0, 0, 0, 0, 1, 1, 0, 0, 1, 0, 1, 1]),
    ("a:1:1:lbw=OUTALL", SDXL, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]),
    ("a:1:1:lbw=INS", SDXL, [1, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1]),
    (f"a:1:lbw={tenths(12)}", SDXL, [0.1, 0.1, 0, 0, 0, 0.2, 0.5, 0.6, 0.7, 0.9, 1.2, 0, 1, 1]),
    (f"a:1:lbw={tenths(17)}", SDXL, [0.1, 0.1, 0, 0.3, 0, 0.4, 0.7, 0.8, 0, 0, 1.1, 1.4, 1, 1]),
    (f"a:1:lbw={tenths(20)}", SDXL, [0.1, 0.1, 0.2, 0.4, 0.5, 0.6, 1.0, 1.1, 1.2, 1.4, 1.7, 2.0, 1, 1]),
    (f"a:2:lbw={tenths(26)}", SDXL, [0.2, 0.2, 0.4, 0.8, 1.0, 1.2, 2.0, 2.8, 3.0, 3.4, 4.0, 4.6, 2, 2]),
    ("a:1:1:lbw=XX:x=0.7", SDXL, [0.7, 0.7, 0, 1, 0, 1, 1, 1, 0, 0, 1, 0.7, 1, 1]),
    ("a:1:1:lbw=MIDD:lbwe=ATTNDEEPOFF", SDXL, [1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 1]),
    ("a:1:1:lbwe=PROJDEEPOFF", SDXL, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1]),
    ("a:1:1:lbwe=E2:lbw=INALL", SDXL, [0.1, 0.1, 0, 1, 0, 1, 1, 2, 0, 0, 0, 0, 1, 1]),
    ("a:1:1:lbwe=E4", SDXL, [1, 1, 1, 0.3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ("a:1:1:lbwe=E5", SDXL, [1, 1, 1, 1, 0.4, 1, 1, 1, 1, 1, 1, 0.4, 1, 1]),
    ("a:1:1:lbwe=E6", SDXL, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]),
]


def keys(paths: tuple[str, ...]) -> list[LayerKey]:
    return [LayerKey(*p.split(":")) if ":" in p else LayerKey(UNET, p) for p in paths]


@pytest.mark.parametrize(("tag", "paths", "expected"), FACTS, ids=lambda value: value if isinstance(value, str) else "")
def test_strength_of_each_layer_is_theirs(tag: str, paths: tuple[str, ...], expected: list[float]) -> None:
    strengths = parse_arguments(tag.split(":"), PRESETS).strengths()
    assert [strengths.of(key) for key in keys(paths)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("version", ["sd1", "sd2", "sdxl"])
def test_the_slot_is_the_number_of_ldms_block(version: str) -> None:
    """Against the numbers that ldm and sgm themselves give their modules."""
    counts: Counter[str | None] = Counter()
    for path, native in NATIVE[version].items():
        room, number = native.split(".")[:2]
        rooms = {"input_blocks": f"IN{int(number) if number.isdigit() else 0:02}", "middle_block": "M00"}
        rooms["output_blocks"] = f"OUT{int(number) if number.isdigit() else 0:02}"
        assert block_of(LayerKey(UNET, path)) == rooms.get(room)
        counts[rooms.get(room)] += 1
    full = LAYOUTS[20 if version == "sdxl" else 26]
    assert set(counts) == {*full[1:], None}
    assert counts[None] == (6 if version == "sdxl" else 4)


@pytest.mark.parametrize("version", ["sd1", "sdxl"])
def test_short_layouts_are_the_blocks_with_a_transformer(version: str) -> None:
    with_transformer = {block_of(LayerKey(UNET, p)) for p in unet_paths(version) if ".attentions." in p}
    assert with_transformer == set(LAYOUTS[12 if version == "sdxl" else 17][1:])


def test_base_is_all_of_every_text_encoder() -> None:
    for part in (TE1, TE2):
        assert {block_of(LayerKey(part, path)) for path in text_encoder_paths(32, projection=True)} == {"BASE"}


def test_a_layer_that_no_unet_has_is_outside_the_blocks() -> None:
    assert block_of(LayerKey(UNET, "down_blocks.7.attentions.0.proj_in")) is None


@given(st.sampled_from(sorted(set(LAYOUTS) - {61})), st.data())
def test_every_entry_reaches_its_slot(length: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(-2, 2), min_size=length, max_size=length))
    ratios = parse_vector(",".join(map(repr, values))).ratios(Random(0))
    given_by_id = dict(zip(LAYOUTS[length], values))
    assert ratios == tuple(given_by_id.get(block, 0.0) for block in IDS)


def test_random_entries_stay_in_range_with_three_digits() -> None:
    weights = parse_vector(",".join(["R", "U"] * 10))
    drawn = [ratio for seed in range(50) for ratio in weights.ratios(Random(seed))]
    ids = LAYOUTS[20]
    per_slot = {block: [drawn[i + 26 * n] for n in range(50)] for i, block in enumerate(IDS) if block in ids}
    for i, block in enumerate(ids):
        low, high = (0.0, 1.0) if i % 2 == 0 else (-0.5, 1.5)
        assert all(low <= ratio <= high and ratio == round(ratio, 3) for ratio in per_slot[block])
        assert max(per_slot[block]) - min(per_slot[block]) > 0.5 * (high - low)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("1,1", "has 2 weights"),
        (",".join(["1"] * 16), "has 16 weights"),
        (",".join(["1"] * 16 + ["r"]), "'r' is not a number"),
        (",".join(["1"] * 16 + [""]), "'' is not a number"),
        (",".join(["1"] * 16 + ["nan"]), "'nan' is not a usable number"),
        (",".join(["1"] * 16 + ["X*2"]), "'X*2' is not a number"),
        (",".join(["1"] * 16 + ["X+"]), "'X+' is not a number"),
        (",".join(["1"] * 16 + ["X+a"]), "'a' is not a number"),
    ],
)
def test_vectors_that_cannot_be_read(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault.replace("*", "[*]").replace("+", "[+]")):
        parse_vector(text)


def test_a_flux_vector_is_read_and_known_as_such() -> None:
    assert len(FLUX_IDS) == 61 and FLUX_IDS[3] == "D00" and FLUX_IDS[22] == "S00" and FLUX_IDS[-2:] == ("S37", "OUT")
    assert parse_vector(",".join(["0.5"] * 61)).for_flux
    assert not BlockWeights((1.0,) * 26).for_flux


def test_ranges_go_both_ways() -> None:
    assert expand_range("IN10-OUT01") == ("IN10", "IN11", "M00", "OUT00", "OUT01")
    assert expand_range("OUT01-IN10") == expand_range("IN10-OUT01")
    assert expand_range("D18-S01") == ("D18", "S00", "S01")
    assert expand_range("encoder") == ("encoder",)
    with pytest.raises(ValueError, match="IN10-OUT12"):
        expand_range("IN10-OUT12")
