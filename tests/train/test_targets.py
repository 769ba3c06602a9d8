"""Which layers are trained: kohya's counts on models of real size, the presets, patterns, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lib_lora.errors import BadConfig
from lib_lora.keys.checkpoint import default_targets
from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey
from lib_lora.keys.unet import conv_targets
from lib_lora.models.any_module import ModuleModel
from lib_lora.models.ldm_layers import LdmLayers
from lib_lora.train.config import make_job
from lib_lora.train.methods.dreambooth import DreamBooth
from lib_lora.train.sections import NetworkSection
from lib_lora.train.targets import NORM, kind_of, target_keys
from tests.models import live
from tests.train.zoo import zoo

TEXT: dict[str, dict[str, Any]] = {
    "sd1": {"train_text_encoder": True},
    "sd2": {"train_text_encoder": True},
    "sdxl": {"train_text_encoder": True, "train_text_encoder_2": True},
}
KOHYA = {
    "sd1": {UNET: 192, TE1: 72},
    "sd2": {UNET: 192, TE1: 138},
    "sdxl": {UNET: 722, TE1: 72, TE2: 192},
}
CONVS = {"sd1": 86, "sd2": 86, "sdxl": 66}
# Blocks with a transformer block's five IA3 layers, and of the text encoders with three each.
IA3 = {
    "sd1": {UNET: 16 * 5, TE1: 12 * 3},
    "sd2": {UNET: 16 * 5, TE1: 23 * 3},
    "sdxl": {UNET: 70 * 5, TE1: 12 * 3, TE2: 32 * 3},
}
BLOCKS = {"sd1": 16, "sd2": 16, "sdxl": 70}


@pytest.fixture(scope="module")
def models() -> dict[str, LdmLayers]:
    """Models of real size on the meta device."""
    return {version: LdmLayers(live.full(version)) for version in KOHYA}


def counts(model: Any, **settings: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for key in target_keys(model, NetworkSection(**settings)):
        found[key.part] = found.get(key.part, 0) + 1
    return found


@pytest.mark.parametrize("version", KOHYA)
def test_the_layers_of_kohyas_defaults(models: dict[str, LdmLayers], version: str) -> None:
    model = models[version]
    keys = target_keys(model, NetworkSection(**TEXT[version]))
    assert keys == sorted(keys)
    for part, count in KOHYA[version].items():
        paths = {key.path for key in keys if key.part == part}
        assert paths == set(default_targets(part, version)) and len(paths) == count
    for kind in ("lora", "dylora", "glora", "full", "oft", "boft"):
        assert counts(model, type=kind, **TEXT[version]) == KOHYA[version]
    for kind in ("locon", "loha", "lokr"):
        wide = {**KOHYA[version], UNET: KOHYA[version][UNET] + CONVS[version]}
        assert counts(model, type=kind, **TEXT[version]) == wide
    locon = {key.path for key in target_keys(model, NetworkSection(type="locon"))}
    assert locon == set(default_targets(UNET, version)) | set(conv_targets(version))


@pytest.mark.parametrize("version", KOHYA)
def test_ia3_and_norms(models: dict[str, LdmLayers], version: str) -> None:
    model = models[version]
    assert counts(model, type="ia3", **TEXT[version]) == IA3[version]
    norms = counts(model, type="norm", **TEXT[version])
    # three in a transformer block, one before each transformer, two in a resnet; not the last one, which the webui's
    # built-in Lora knows by no name in files for SD1 and SD2
    transformers, resnets = {"sd1": (16, 22), "sd2": (16, 22), "sdxl": (11, 17)}[version]
    assert norms[UNET] == 3 * BLOCKS[version] + transformers + 2 * resnets
    assert norms[TE1] == {"sd1": 24, "sd2": 46, "sdxl": 24}[version]
    every = counts(model, type="norm", targets="all", **TEXT[version])
    assert every == {part: count + 1 for part, count in norms.items()}
    both = counts(model, train_norms=True, **TEXT[version])
    assert both[UNET] == KOHYA[version][UNET] + 3 * BLOCKS[version] + transformers
    assert both[TE1] == KOHYA[version][TE1] + norms[TE1]


@pytest.mark.parametrize("version", KOHYA)
def test_dreambooth_trains_every_norm(models: dict[str, LdmLayers], version: str) -> None:
    model, text = models[version], {f"network.{name}": True for name in TEXT[version]}
    job = make_job({"method.name": "dreambooth", "training.freeze_norms": False, **text})
    norms = {key for key, slot in model.slots().items() if kind_of(model, key, slot) == NORM}
    assert len(norms) > 100 and norms <= set(target_keys(model, DreamBooth().section(job)))


@pytest.mark.parametrize("version", KOHYA)
def test_presets(models: dict[str, LdmLayers], version: str) -> None:
    model, blocks = models[version], BLOCKS[version]
    assert counts(model, targets="attention", type="loha") == {UNET: KOHYA[version][UNET]}
    assert counts(model, targets="attention_conv") == {UNET: KOHYA[version][UNET] + CONVS[version]}
    assert counts(model, targets="cross_attention") == {UNET: 4 * blocks}
    assert counts(model, targets="cross_attention_kv") == {UNET: 2 * blocks}
    ends = 4 if version != "sdxl" else 6  # conv_in, conv_out, the time's two and the sizes' two
    assert counts(model, targets="all") == {UNET: KOHYA[version][UNET] + CONVS[version] + ends}
    text = counts(model, targets="cross_attention_kv", **TEXT[version])
    assert {part: text[part] for part in text if part != UNET} == {p: n for p, n in KOHYA[version].items() if p != UNET}


def test_patterns(models: dict[str, LdmLayers]) -> None:
    model = models["sd1"]
    assert counts(model, include=(r"time_embedding", r"conv_in$")) == {UNET: 195}
    assert counts(model, exclude=(r"unet:.*\.ff\.",)) == {UNET: 160}
    assert counts(model, include=(r"time_embedding",), exclude=(r"time_embedding", r"proj_(in|out)$")) == {UNET: 160}
    both = target_keys(model, NetworkSection(include=("token_embedding", "final_layer_norm"), train_text_encoder=True))
    assert LayerKey(TE1, "text_model.embeddings.token_embedding") in both
    assert LayerKey(TE1, "text_model.final_layer_norm") in both and len(both) == 192 + 72 + 2


def test_what_can_never_learn_is_left_out(models: dict[str, LdmLayers]) -> None:
    everything = NetworkSection(include=("",), train_text_encoder=True, train_text_encoder_2=True)
    sdxl = {str(key) for key in target_keys(models["sdxl"], everything)}
    # bare parameters of OpenCLIP, which no forward pass of their own module reads
    assert "te2:text_model.embeddings.token_embedding" in sdxl
    assert not sdxl & {"te2:text_model.embeddings.position_embedding", "te2:text_projection"}
    sd2 = target_keys(models["sd2"], NetworkSection(include=("",), train_text_encoder=True))
    assert not [key for key in sd2 if ".layers.23." in key.path]  # never run
    assert [key for key in sd2 if ".layers.22." in key.path]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"include": ("(",)}, r"network.include: '\(' is no regular expression"),
        ({"exclude": ("*",)}, "network.exclude"),
        ({"exclude": (".",)}, "network.train_unet = True.*patterns leave none"),
        ({"train_text_encoder_2": True}, "network.train_text_encoder_2 = True.*no layer of that part"),
    ],
)
def test_what_is_refused(models: dict[str, LdmLayers], settings: dict[str, Any], text: str) -> None:
    with pytest.raises(BadConfig, match=text):
        target_keys(models["sd1"], NetworkSection(**settings))


def test_no_part_chosen_is_no_layer(models: dict[str, LdmLayers]) -> None:
    assert target_keys(models["sd1"], NetworkSection(train_unet=False)) == []


def test_any_module_is_its_own_choice() -> None:
    net, model = zoo(torch.float32)
    paths = {key.path for key in target_keys(model, NetworkSection())}
    fused = {"q_proj", "k_proj", "v_proj", "out_proj"}
    assert paths == {f"block.{n}" for n in ("wide", "narrow", "conv", "point")} | {f"block.attn.{n}" for n in fused}
    norms = target_keys(model, NetworkSection(type="norm"))
    assert {key.path for key in norms} == {"block.ln", "block.gn"}
    some = ModuleModel(net, [r"_proj$", r"wide"])
    assert {key.path for key in some.slots()} == {"block.wide"} | {f"block.attn.{n}" for n in fused}
    for patterns, text in (
        (["nothing"], "no layer of 'model' matches 'nothing'; it has token_embedding"),
        (["("], "no regular"),
    ):
        with pytest.raises(BadConfig, match=text):
            ModuleModel(net, patterns)
    with pytest.raises(BadConfig, match="it has none"):
        ModuleModel(nn.ReLU())
