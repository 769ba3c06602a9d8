"""What a request means at each moment. Start and stop are as in lora-block-weight, hires strengths as in loractl."""

from __future__ import annotations

import pytest

from lib_lora.errors import WrongBaseModel
from lib_lora.keys.layer_key import TE1, UNET, LayerKey
from lib_lora.prompt import Moment, NetworkRequest, Strengths, parse_arguments

TE = LayerKey(TE1, "text_model.encoder.layers.0.mlp.fc1")
IN = LayerKey(UNET, "down_blocks.1.attentions.0.proj_in")
FIRST = LayerKey(UNET, "conv_in")
MID = LayerKey(UNET, "mid_block.resnets.0.conv1")
OUT = LayerKey(UNET, "up_blocks.1.attentions.0.proj_in")
TIME = LayerKey(UNET, "time_embedding.linear_1")


def request(text: str) -> NetworkRequest:
    return parse_arguments(text.split(":"))


@pytest.mark.parametrize(
    ("span", "active"),
    [
        ("start=0", "111111111111"),
        ("start=2", "001111111111"),
        ("start=5", "000001111111"),
        ("stop=0", "000000000000"),
        ("stop=2", "110000000000"),
        ("stop=5", "111110000000"),
        ("step=3-8", "000111110000"),
        ("start=2:stop=4", "001100000000"),
        ("stop=20", "111111111111"),
        # lora-block-weight cannot tell the first two steps apart and has 111... and 000...
        ("start=1", "011111111111"),
        ("stop=1", "100000000000"),
    ],
)
def test_a_network_acts_in_the_unet_from_start_to_stop(span: str, active: str) -> None:
    tag = request(f"a:0.5:0.7:{span}")
    seen = [tag.strengths(Moment(i, 12)) for i in range(12)]
    assert [s.of(IN) for s in seen] == [0.7 if on == "1" else 0.0 for on in active]
    assert {s.of(TE) for s in seen} == {0.5}, "texts are encoded before the first step, at full strength"
    assert tag.scheduled == (span != "start=0")


def test_the_text_encoder_takes_the_first_steps_strength() -> None:
    tag = request("a:0.25@0,1@1")
    assert [tag.strengths(Moment(i, 5)) for i in range(5)] == [
        Strengths(0.25, unet) for unet in (0.25, 0.25, 0.5, 0.75, 1.0)
    ]
    assert tag.scheduled
    assert not request("a:te=0.25@0,1@1:unet=1").scheduled


def test_the_hires_pass_has_its_own_strengths() -> None:
    tag = request("a:0.5:hr=0@0,1@1:hrte=0.3")
    assert tag.strengths(Moment(9, 10)) == Strengths(0.5, 0.5)
    assert tag.strengths(Moment(9, 10, hires=True)) == Strengths(0.3, 1.0)
    assert tag.strengths(Moment(0, 10, hires=True)) == Strengths(0.3, 0.0)
    plain = request("a:0.5:0.7")
    assert plain.strengths(Moment(3, 10, hires=True)) == plain.strengths() == Strengths(0.5, 0.7)


@pytest.mark.parametrize(
    ("text", "scheduled"),
    [
        ("a", False),
        ("a:0.5@0,0.5@1", False),
        ("a:hr=1", False),
        ("a:hr=0.5", True),
        ("a:hrte=0.5", True),
        ("a:in=0.5", False),
        ("a:in=0@0,1@1", True),
        ("a:in=0.5:hr=1", True),  # in the hires pass the groups are gone
        ("a:lbw=MIDD:lbwe=XYZ", False),
        ("a:hrunet=0@0,1@1", True),
    ],
)
def test_scheduled_means_that_strengths_change_within_a_picture(text: str, scheduled: bool) -> None:
    tag = request(text)
    moments = [Moment(i, 6, hires) for i in range(6) for hires in (False, True)]
    assert tag.scheduled == scheduled
    assert (len({tag.strengths(moment) for moment in moments}) > 1) == scheduled


def test_groups_of_blocks() -> None:
    seen = request("a:0.5:0.7:in=0.1:out=2").strengths()
    assert [seen.of(key) for key in (TE, FIRST, IN, MID, OUT, TIME)] == [0.5, 0.1, 0.1, 0.7, 2.0, 0.7]
    moving = request("a:0.5:in=0@0,1@1:mid=2")
    assert [moving.strengths(Moment(i, 4)).of(IN) for i in range(4)] == [0, 0, 0.5, 1]
    assert {moving.strengths(Moment(i, 4)).of(OUT) for i in range(4)} == {0.5}
    hires = request("a:0.5:in=0.1:hr=0.9").strengths(Moment(hires=True))
    assert [hires.of(key) for key in (TE, IN, MID)] == [0.9, 0.9, 0.9]
    stopped = request("a:0.5:in=0.1:stop=2").strengths(Moment(2, 4))
    assert [stopped.of(key) for key in (TE, IN, MID)] == [0.5, 0, 0]


def test_groups_schedules_and_block_weights_multiply() -> None:
    tag = request("a:1:0@0,2@1:lbw=0.5,0,0,0.1,0,0,0,0.25,0,0,0,0,0,0,0,0,0:mid=4")
    last = tag.strengths(Moment(3, 4))
    assert [last.of(key) for key in (TE, IN, MID, OUT, TIME)] == pytest.approx([0.5, 0.2, 1.0, 0, 2])


def test_random_weights_follow_the_seed() -> None:
    tag = request("a:lbw=" + ",".join(["R"] * 17))
    assert tag.strengths(seed=5) == tag.strengths(Moment(7, 9), 5)
    assert tag.strengths(seed=5) != tag.strengths(seed=6)
    assert request("b:lbw=" + ",".join(["R"] * 17)).strengths(seed=5) != tag.strengths(seed=5)
    assert not tag.scheduled
    drawn = tag.strengths(seed=5).ratios
    assert drawn is not None and drawn[:3] == (0.111, 0.0, 0.668), "the same on every machine, in every version"


def test_flux_weights_are_refused_for_a_unet() -> None:
    with pytest.raises(WrongBaseModel, match="61 of Flux"):
        request("a:lbw=FLUXALL").strengths()


def test_requests_and_strengths_are_values() -> None:
    texts = ["a", "a:0.5", "a:lbw=MIDD", "a:lbw=INS", "a:lbwe=XYZ", "a:in=0.5", "a:start=3"]
    assert len({request(text) for text in texts * 2}) == len(texts)
    assert len({request(text).strengths() for text in texts * 2}) == len(texts)
    assert request("a:1:1").strengths() == Strengths() == request("b").strengths()
