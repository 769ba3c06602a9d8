"""Whole files of every dialect, for every version: each layer is found, and the version is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_lora.keys import formats, unet, versions
from lib_lora.keys.layer_key import LayerKey
from tests.keys.dialects import DIALECTS, MATCHED, ONE_PART_A_FILE, Target

PARTS = {"sd1": ("unet", "te1"), "sd2": ("unet", "te1"), "sdxl": ("unet", "te1", "te2")}


def targets(base_model: Callable, version: str, part: str) -> list[Target]:
    return [Target(version, part, path, shape) for path, shape in base_model(version, part).shapes.items()]


def written(dialect: str, layers: list[Target]) -> tuple[dict[str, tuple[int, ...]], dict[LayerKey, int]]:
    """Names and shapes of a file, and how many tensors each layer has in it."""
    names: dict[str, tuple[int, ...]] = {}
    count: dict[LayerKey, int] = {}
    for target in layers:
        own = dict(DIALECTS[dialect](target))
        assert not names.keys() & own.keys()
        names |= own
        if own:
            count[LayerKey(target.part, target.path)] = len(own)
    return names, count


def shapes_of(reading: formats.Reading, names: dict[str, tuple[int, ...]]) -> versions.Layers:
    return {key: {tensor: names[name] for tensor, name in own.items()} for key, own in reading.layers.items()}


@pytest.mark.parametrize("version", PARTS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_layer_of_a_whole_file(dialect: str, version: str, base_model: Callable) -> None:
    """All Linear, convolution and norm layers at once, each with all its tensors."""
    whole = [[part] for part in PARTS[version]] if dialect in ONE_PART_A_FILE else [list(PARTS[version])]
    for parts in whole:
        layers = [target for part in parts for target in targets(base_model, version, part)]
        names, expected = written(dialect, layers)
        reading = formats.place(names)
        assert reading.unknown == ()
        assert {key: len(tensors) for key, tensors in reading.layers.items()} == expected
        for part in parts:
            wanted = sum(key.part == part for key in expected)
            MATCHED[dialect, version, part] = sum(key.part == part for key in reading.layers), wanted
        told = versions.candidates(shapes_of(reading, names))
        alone = parts == ["te1"] and version != "sd2"
        if dialect != "kohya OFT":  # it has no tensor with an input side
            assert told[0] == ("sd1" if alone else version)
        assert version in told


@pytest.mark.parametrize("dialect", ["kohya", "diffusers PEFT", "diffusers processors", "ComfyUI"])
@pytest.mark.parametrize("version", PARTS)
def test_kohyas_default_layers_tell_the_version(dialect: str, version: str, base_model: Callable) -> None:
    every = [target for part in PARTS[version] for target in targets(base_model, version, part)]
    names, _ = written(dialect, [t for t in every if ".attentions." in t.path or ".self_attn." in t.path])
    assert versions.candidates(shapes_of(formats.place(names), names)) == (version,)


@pytest.mark.parametrize("version", ["sd1", "sd2", "sdxl"])
def test_one_cross_attention_layer_is_enough(version: str, base_model: Callable) -> None:
    shape = base_model(version, "unet").shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]
    names = {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": (1280, 4),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, shape[1]),
    }
    assert versions.candidates(shapes_of(formats.place(names), names)) == (version,)


def test_layers_all_versions_share_fit_all() -> None:
    key = LayerKey("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    assert versions.candidates({key: {"lora_down.weight": (4, 1280)}}) == ("sd1", "sd2", "sdxl")
    assert versions.candidates({LayerKey("te1", "text_model.final_layer_norm"): {}}) == ("sd1", "sd2", "sdxl")


def test_one_odd_layer_does_not_decide(base_model: Callable) -> None:
    names, _ = written("kohya", targets(base_model, "sdxl", "unet"))
    odd = {"lora_unet_down_blocks_3_resnets_0_conv1.alpha": (), "lora_unet_double_blocks_0_img_attn_qkv.alpha": ()}
    both = {**odd, **names}
    reading = formats.place(both)
    assert versions.candidates(shapes_of(reading, both), reading.unknown) == ("sdxl",)


FOREIGN = {
    "flux": "lora_unet_double_blocks_0_img_attn_proj transformer.single_transformer_blocks.3.attn.to_q "
    "lora_transformer_single_transformer_blocks_0_attn_to_k diffusion_model.single_blocks.4.linear1",
    "sd3": "lora_unet_joint_blocks_0_x_block_attn_proj transformer.transformer_blocks.0.attn.add_k_proj "
    "base_model.model.transformer_blocks.1.attn.to_q",
    "cascade": "lora_prior_unet_down_blocks_0_1_attention_attn_in_proj",
    "wan": "diffusion_model.blocks.0.cross_attn.k lora_unet_blocks_3_self_attn_q",
    "hunyuan-video": "transformer.double_blocks.0.img_attn_qkv txt_in.individual_token_refiner.blocks.0.x",
    "z-image": "diffusion_model.layers.0.attention.to_q lora_unet_context_refiner_0_attention_qkv",
    "qwen-image": "transformer_blocks.0.img_mlp.net.0.proj lora_unet_transformer_blocks_59_attn_to_q",
    "anima": "diffusion_model.blocks.0.cross_attn.q_proj lora_unet_blocks_3_self_attn_output_proj",
    "chroma": "lora_unet_distilled_guidance_layer_layers_0_in_layer",
    "pixart": "transformer.transformer_blocks.0.attn1.to_q lora_unet_transformer_blocks_1_attn2_to_k",
    "hidream": "diffusion_model.double_stream_blocks.0.block.attn1.to_q",
    "animatediff": "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.to_q",
}


@pytest.mark.parametrize(("version", "module"), [(v, m) for v, modules in FOREIGN.items() for m in modules.split()])
def test_other_base_models_are_told_by_names(version: str, module: str) -> None:
    names = {f"{module}.lora_up.weight": (8, 4), f"{module}.lora_down.weight": (4, 8)}
    reading = formats.place(names)
    assert not reading.layers
    assert versions.candidates({}, reading.unknown) == (version,)
    assert version not in versions.title(version)  # people get a written name


def test_what_only_one_model_has_goes_before_names_that_several_share() -> None:
    """Of a file's layers most are attentions, and SD 3, Flux and Qwen-Image call these the same."""
    shared = [f"transformer.transformer_blocks.{i}.attn.{p}.lora_A.weight" for i in range(9) for p in ("to_q", "to_k")]
    assert versions.foreign(shared) == "sd3"
    assert versions.foreign([*shared, "transformer.transformer_blocks.0.img_mlp.net.2.lora_A.weight"]) == "qwen-image"
    assert versions.foreign([*shared, "transformer.single_transformer_blocks.0.proj_out.lora_A.weight"]) == "flux"
    attentions = [f"diffusion_model.blocks.{i}.attn1.to_q.lora_A.weight" for i in range(9)]
    assert versions.foreign([*attentions, "diffusion_model.blocks.0.ffn.net.2.lora_A.weight"]) == "wan"


def test_a_flux_file_with_its_clip_encoder_is_flux() -> None:
    names = {f"lora_te1_text_model_encoder_layers_{i}_mlp_fc1.alpha": () for i in range(12)}
    names |= {f"lora_unet_double_blocks_{i}_img_attn_proj.alpha": () for i in range(3)}
    reading = formats.place(names)
    assert len(reading.layers) == 12
    assert versions.candidates(shapes_of(reading, names), reading.unknown) == ("flux",)


def test_the_refiner_is_told_by_its_width() -> None:
    key = LayerKey("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k")
    assert versions.candidates({key: {"lora_down.weight": (4, 1280)}}) == (versions.REFINER,)


def test_nothing_at_all_fits_nothing() -> None:
    assert versions.candidates({}) == ()
    assert versions.foreign(["alpha", "lora_unet_down_blocks_0_attentions_0_proj_in.alpha"]) is None


SOME_NAMES = [
    f"{prefix}{path}.{tensor}"
    for prefix in (
        "lora_unet_",
        "unet.",
        "diffusion_model.",
        "base_model.model.",
        "lora_te2_",
        "text_encoder.",
        "oft_unet_",
    )
    for path in (*list(unet.LDM_TO_DIFFUSERS)[::97], "text_model.encoder.layers.7.self_attn.q_proj", "unet:3")
    for tensor in (
        "lora_A.x.weight",
        "alpha",
        "lora_up.weight",
        "processor.to_q_lora.up.weight",
        "bias",
        "oft_R.weight",
    )
] + [
    "unet:0:up",
    "unet:0:down",
    "unet:٣:up",
    "text_encoder:999:up",
    "bundle_emb.a.clip_l",
    "lora_te_text_model_encoder_layers_²_",
]
NAMES = st.one_of(
    st.sampled_from(SOME_NAMES),
    st.text(max_size=40),
    st.builds(lambda a, b, cut: a[:cut] + b[cut:], *[st.sampled_from(SOME_NAMES)] * 2, st.integers(0, 60)),
)
SHAPES = st.lists(st.integers(0, 2**40), max_size=5).map(tuple)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, SHAPES, max_size=12), st.dictionaries(NAMES, st.sampled_from(["<embed>", "", "{"])))
def test_no_names_make_it_raise_or_lose_a_tensor(names: dict[str, tuple[int, ...]], metadata: dict[str, str]) -> None:
    reading = formats.place(names, metadata)
    placed = [name for own in reading.layers.values() for name in own.values()]
    bundled = [name for own in reading.embeddings.values() for name in own.values()]
    assert sorted([*placed, *bundled, *reading.unknown]) == sorted(names)
    assert all(reading.layers.values())
    told = versions.candidates(shapes_of(reading, names), reading.unknown)
    assert all(isinstance(versions.title(version), str) for version in told)
