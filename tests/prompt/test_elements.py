"""Element rules: names as lora-block-weight sees them; what its users write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey
from lib_lora.prompt.blocks import IDS
from lib_lora.prompt.elements import Rule, format_rules, name_of, parse_rules, ratio_of


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (
            LayerKey(UNET, "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"),
            "diffusion_model_input_blocks_4_1_transformer_blocks_0_attn2_to_k IN04",
        ),
        (LayerKey(UNET, "down_blocks.2.resnets.1.time_emb_proj"), "diffusion_model_input_blocks_8_0_emb_layers_1 IN08"),
        (LayerKey(UNET, "mid_block.resnets.1.conv1"), "diffusion_model_middle_block_2_in_layers_2 M00"),
        (LayerKey(UNET, "conv_out"), "diffusion_model_out_2 "),
        (
            LayerKey(TE1, "text_model.encoder.layers.3.mlp.fc1"),
            "transformer_text_model_encoder_layers_3_mlp_fc1 BASE",
        ),
        (
            LayerKey(TE2, "text_model.encoder.layers.3.mlp.fc1"),
            "transformer_text_model_encoder_layers_3_mlp_fc1 transformer_resblocks_3_mlp_c_fc BASE",
        ),
    ],
)
def test_names_are_those_of_ldm(key: LayerKey, name: str) -> None:
    assert name_of(key) == name


def test_the_last_matching_rule_counts() -> None:
    rules = parse_rules("IN04:attn:0.5, IN00-IN11:attn2:0.25\nBASE::2")
    key = LayerKey(UNET, "down_blocks.1.attentions.0.transformer_blocks.0.{}.to_k")
    assert ratio_of(LayerKey(UNET, key.path.format("attn1")), rules, 1.0) == 0.5
    assert ratio_of(LayerKey(UNET, key.path.format("attn2")), rules, 1.0) == 0.25
    assert ratio_of(LayerKey(TE1, "text_model.final_layer_norm"), rules, 1.0) == 2
    assert ratio_of(LayerKey(UNET, "conv_out"), rules, 0.75) == 0.75


def test_a_space_after_the_comma_is_not_a_word_that_fits_all() -> None:
    """It is one in lora-block-weight: ` OUT05` there means every block."""
    assert parse_rules("IN05:attn:1, OUT05:attn:1") == (
        Rule(("IN05",), ("attn",), 1.0),
        Rule(("OUT05",), ("attn",), 1.0),
    )


def test_not_turns_a_list_round() -> None:
    (rule,) = parse_rules("NOT IN05 M00:NOT attn1 ff:0")
    assert rule == Rule(("IN05", "M00"), ("attn1", "ff"), 0.0, True, True)
    assert rule.matches("x_attn2 IN04") and not rule.matches("x_attn2 IN05") and not rule.matches("x_attn1 IN04")
    assert parse_rules("NOT::1") == (Rule((), (), 1.0),)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no rule"),
        (",\n,", "no rule"),
        ("attn:1", "'attn:1' is not of the form"),
        ("a:b:c:1", "is not of the form"),
        ("IN05:attn:much", "'much' is not a number"),
        ("IN05-OUT99:attn:1", "'IN05-OUT99' is not a range"),
    ],
)
def test_rules_that_cannot_be_read(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_rules(text)


words = st.lists(st.sampled_from([*IDS, "attn", "attn1", "to_q", "proj", "encoder"]), max_size=4)
rules = st.builds(
    lambda b, e, ratio, nb, ne: Rule(tuple(b), tuple(e), ratio, nb and bool(b), ne and bool(e)),
    words,
    words,
    st.floats(-3, 3),
    st.booleans(),
    st.booleans(),
)


@given(st.lists(rules, min_size=1, max_size=4).map(tuple))
def test_rules_are_written_as_they_are_read(given_rules: tuple[Rule, ...]) -> None:
    assert parse_rules(format_rules(given_rules)) == given_rules
