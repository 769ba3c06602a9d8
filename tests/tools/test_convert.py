"""Conversion: the changes stay the same in every dialect, and diffusers and PEFT load what was written for them."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lib_lora.__main__ import main
from lib_lora.cli import convert as command
from lib_lora.errors import BadConfig, UnknownFormat
from lib_lora.files.codec import network_tensors, read_network, write_network
from lib_lora.files.tensors import read_header, write_tensors
from lib_lora.keys.layer_key import LayerKey
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.networks import registry
from lib_lora.networks.base import Layer
from lib_lora.networks.network import Network
from lib_lora.tools.convert import DIALECTS, ConvertJob, convert

ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0", ".ff.net.0.proj", "q_proj", "k_proj", "v_proj", "out_proj")
TO_K = LayerKey("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
NET_2 = LayerKey("unet", "mid_block.attentions.0.transformer_blocks.0.ff.net.2")
CONV = LayerKey("unet", "down_blocks.0.resnets.0.conv1")
FC1 = LayerKey("te1", "text_model.encoder.layers.0.mlp.fc1")
TOKENS = LayerKey("te1", "text_model.embeddings.token_embedding")
WEIGHTS: dict[LayerKey, tuple[int, ...]] = {TO_K: (12, 768), NET_2: (12, 8), CONV: (8, 6, 3, 3), FC1: (10, 768)}


def build(tensors: Mapping[str, Tensor]) -> Layer:
    layer = registry.build(tensors)
    assert layer is not None
    return layer


def lora(shape: tuple[int, ...], rank: int = 2, alpha: float = 1.5, **more: Any) -> dict[str, Any]:
    """Random factors for a weight; `mid` puts a core between them."""
    out, width, *kernel = shape
    ones = (1,) * len(kernel)
    dtype = more.pop("dtype", torch.float32)
    tensors = {"lora_up.weight": torch.randn(out, rank, *ones).to(dtype), "alpha": torch.tensor(alpha)}
    if more.pop("mid", False):
        tensors["lora_mid.weight"] = torch.randn(rank, rank, *kernel).to(dtype)
        kernel = list(ones)
    return {**tensors, "lora_down.weight": torch.randn(rank, width, *kernel).to(dtype), **more}


def of_modules(model: DiffusersModel, keep: Callable[[str], bool] = lambda path: True) -> dict[LayerKey, Layer]:
    """LoRA on the model's Linear and convolution layers, of changing ranks and alphas."""
    torch.manual_seed(5)
    layers: dict[LayerKey, Layer] = {}
    for i, (key, module) in enumerate(model.modules_by_key().items()):
        weight: Any = module.weight
        if weight.ndim > 1 and keep(key.path):
            tensors = lora(tuple(weight.shape), 1 + i % 3, 0.75 * (1 + i % 4))
            layers[key] = build({name: tensor.double() for name, tensor in tensors.items()})
    return layers


def converted(tmp_path: Path, network: Network, to: str, **options: Any) -> Path:
    source, out = tmp_path / "source.safetensors", tmp_path / ("out" if to == "peft" else "out.safetensors")
    write_network(source, network)
    convert(ConvertJob(source, out, to, **options))
    return out


def read_back(out: Path) -> Network:
    """The written file, or the files of a folder together."""
    if out.is_file():
        return read_network(out)
    parts = [read_network(path) for path in sorted(out.glob("*/adapter_model.safetensors"))]
    assert not any(part.unknown for part in parts)
    return Network("peft", {key: layer for part in parts for key, layer in part.layers.items()})


def assert_same_changes(one: Network, two: Network, shapes: Mapping[LayerKey, tuple[int, ...]]) -> None:
    assert one.layers.keys() == two.layers.keys()
    for key, layer in one.layers.items():
        weight = torch.randn(shapes[key], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        expected = layer.delta(weight)
        difference = (two.layers[key].delta(weight) - expected).abs().max()
        assert difference <= 1e-6 * expected.abs().max(), key
        if layer.changes_bias:
            assert two.layers[key].changes_bias
            bias = torch.randn(shapes[key][0], dtype=torch.float64)
            assert torch.allclose(two.layers[key].bias_delta(bias), layer.bias_delta(bias), rtol=1e-6)


def shapes_of(model: DiffusersModel) -> dict[LayerKey, tuple[int, ...]]:
    return {key: tuple(module.weight.shape) for key, module in model.modules_by_key().items()}  # type: ignore[union-attr]


@pytest.mark.parametrize("to", DIALECTS)
def test_there_and_back_again(tmp_path: Path, tiny_model: DiffusersModel, to: str) -> None:
    """Every dialect, and from each of them kohya's again."""
    whole = to != "cloneofsimo"
    keep = (lambda path: "embedding" not in path) if whole else (lambda path: path.endswith(ATTENTION))
    network = Network("n", of_modules(tiny_model, keep), {"ss_seed": "7", "sshs_model_hash": "0"})
    out = converted(tmp_path, network, to)
    shapes = shapes_of(tiny_model)
    assert_same_changes(network, read_back(out), shapes)
    if out.is_file():
        assert read_header(out).metadata["ss_seed"] == "7"
        assert read_header(out).metadata.get("sshs_model_hash") != "0"
        again = tmp_path / "again.safetensors"
        convert(ConvertJob(out, again, "kohya"))
        assert read_network(again).dialect == "kohya"
        assert_same_changes(network, read_network(again), shapes)


@pytest.fixture
def old_transformers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers asks for a newer transformers than the webui's before it loads anything."""
    pytest.importorskip("peft")
    for name in ("lora_pipeline", "unet", "lora_base"):
        module = importlib.import_module(f"diffusers.loaders.{name}")
        monkeypatch.setattr(module, "USE_PEFT_BACKEND", True, raising=False)


def merged_by_diffusers(model: DiffusersModel, path: Path) -> dict[str, dict[str, Tensor]]:
    """The weights of UNet and text encoder after diffusers loaded a file and PEFT merged it."""
    import peft
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as LoraLoaderMixin
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft

    state, unet = load_file(path), copy.deepcopy(model.unet).double()
    LoraLoaderMixin.load_lora_into_unet(dict(state), network_alphas=None, unet=unet, adapter_name="x")
    text = copy.deepcopy(model.text_encoder).double()
    own = {name.removeprefix("text_encoder."): t for name, t in state.items() if name.startswith("text_encoder.")}
    own = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
    # transformers before 4.33 has no load_adapter; these are the steps it takes, with diffusers' configuration.
    rank = next(t.shape[1] for name, t in own.items() if "lora_B" in name)
    targets = sorted({name.split(".lora_")[0] for name in own})
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules=targets, use_dora=any("magnitude" in n for n in own)
    )
    peft.inject_adapter_in_model(config, text, "x")
    text.peft_config = {"x": config}
    peft.set_peft_model_state_dict(text, own, "x")
    return {"unet": merged(unet), "te1": merged(text)}


def merged(model: nn.Module) -> dict[str, Tensor]:
    """Weights by module path, PEFT's layers merged."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {}
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
            found[path] = module.get_base_layer().weight.detach()
    return found


@pytest.mark.usefixtures("old_transformers_too")
@pytest.mark.parametrize("dora", [False, True])
def test_diffusers_loads_what_is_written_for_it(tmp_path: Path, tiny_model: DiffusersModel, dora: bool) -> None:
    layers = of_modules(tiny_model, lambda path: path.endswith((*ATTENTION, "conv1", "proj_in", "fc1")))
    if dora:
        modules = tiny_model.modules_by_key()
        magnitudes = {key: torch.rand(modules[key].weight.shape[0], 1, dtype=torch.float64) + 0.5 for key in layers}
        layers = {key: build({**layer.to_tensors(), "dora_scale": magnitudes[key]}) for key, layer in layers.items()}
    out = converted(tmp_path, Network("n", layers), "diffusers")
    weights = merged_by_diffusers(tiny_model, out)
    modules = tiny_model.modules_by_key()
    assert sum(map(len, weights.values())) == len(layers)
    for key, layer in layers.items():
        base: Any = modules[key].weight
        expected = base.detach().double() + layer.delta(base.detach().double())
        assert torch.allclose(weights[key.part][key.path], expected, rtol=0, atol=1e-6), key


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "ia3"])
def test_peft_loads_what_is_written_for_it(tmp_path: Path, tiny_model: DiffusersModel, kind: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    modules: Any = tiny_model.modules_by_key()
    chosen = (".to_q", ".to_k", ".to_v") if kind == "ia3" else (".to_q", ".to_k", "conv1", "proj_in")
    layers: dict[LayerKey, Layer] = {}
    for i, key in enumerate(key for key in modules if key.part == "unet" and key.path.endswith(chosen)):
        shape = tuple(modules[key].weight.shape)
        rank, width = 1 + i % 3, shape[1] * (shape[2] * shape[3] if len(shape) > 2 else 1)
        own = lora(shape, rank, 1.25 * (1 + i % 2))
        if kind == "dora":
            own["dora_scale"] = torch.rand(shape[0], *(1,) * (len(shape) - 1)) + 0.5
        elif kind == "loha":
            own = {
                f"hada_w{j}_{ab}": torch.randn((shape[0], rank) if ab == "a" else (rank, width))
                for j in (1, 2)
                for ab in "ab"
            }
            own["alpha"] = torch.tensor(1.25 * (1 + i % 2))
        elif kind == "ia3":
            columns = i % 2
            own = {"weight": torch.randn(shape[columns]), "on_input": torch.tensor(float(columns))}
        layers[key] = build(own)
    out = converted(tmp_path, Network("n", layers), "peft")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(tiny_model.unet).double(), str(out / "unet"))
    weights = {path.removeprefix("base_model.model."): weight for path, weight in merged(loaded).items()}
    assert len(weights) == len(layers)
    for key, layer in layers.items():
        base = modules[key].weight.detach().double()
        expected = base + layer.delta(base)
        assert torch.allclose(weights[key.path], expected, rtol=1e-5, atol=1e-6), key
    assert_same_changes(Network("n", layers), read_back(out), shapes_of(tiny_model))


VARIANTS: dict[str, dict[LayerKey, dict[str, Any]]] = {
    "core": {CONV: lora(WEIGHTS[CONV], mid=True), TO_K: lora(WEIGHTS[TO_K])},
    "scalar": {TO_K: lora(WEIGHTS[TO_K], scalar=torch.tensor(0.3))},
    "scale that float16 cannot hold": {TO_K: lora(WEIGHTS[TO_K], alpha=0.7, dtype=torch.float16)},
    "no rank": {TO_K: lora(WEIGHTS[TO_K], rank=0), NET_2: lora(WEIGHTS[NET_2])},
    "no alpha": {TO_K: {name: t for name, t in lora(WEIGHTS[TO_K]).items() if name != "alpha"}},
    "bias beside": {NET_2: lora(WEIGHTS[NET_2], diff_b=torch.randn(12))},
    "bias of lora_B": {NET_2: {**lora(WEIGHTS[NET_2]), "lora_up.bias": torch.randn(12)}},
    "dora of rows": {
        TO_K: lora(WEIGHTS[TO_K], dora_scale=torch.rand(12, 1)),
        CONV: lora(WEIGHTS[CONV], dora_scale=torch.rand(8, 1, 1, 1)),
    },
    "peft's dora": {CONV: {**lora(WEIGHTS[CONV]), "lora_magnitude_vector": torch.rand(1, 8, 1, 1)}},
}


@pytest.mark.parametrize("to", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_made_of_two_factors_in_other_ways(tmp_path: Path, variant: str, to: str) -> None:
    network = Network("n", {key: build(tensors) for key, tensors in VARIANTS[variant].items()})
    assert_same_changes(network, read_back(converted(tmp_path, network, to)), WEIGHTS)


NOT_THERE: dict[str, tuple[LayerKey, dict[str, Any], str]] = {
    "loha": (
        TO_K,
        {f"hada_w{j}_{ab}": torch.ones((12, 2) if ab == "a" else (2, 768)) for j in (1, 2) for ab in "ab"},
        "type 'loha'",
    ),
    "norm": (LayerKey("unet", "conv_norm_out"), {"w_norm": torch.ones(8)}, "type 'norm'"),
    "columns": (TO_K, lora((12, 768), dora_scale=torch.ones(1, 768)), "those of columns"),
    "rest": (
        NET_2,
        lora(
            (12, 8), bias_indices=torch.zeros(2, 1).long(), bias_values=torch.ones(1), bias_size=torch.tensor([12, 8])
        ),
        "bias_indices",
    ),
    "embedding": (TOKENS, lora((20, 768)), "embedding"),
}


@pytest.mark.parametrize("case", NOT_THERE)
def test_what_has_no_place_in_diffusers_files_is_told_with_the_reason(tmp_path: Path, case: str) -> None:
    key, tensors, reason = NOT_THERE[case]
    network = Network("n", {key: build(tensors), FC1: build(lora(WEIGHTS[FC1]))})
    with pytest.raises(BadConfig, match=f"{reason}.*--partial") as caught:
        converted(tmp_path, network, "diffusers")
    assert str(key) in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    report = convert(ConvertJob(source, out, "diffusers", partial=True))
    assert (report.layers, list(read_network(out).layers)) == (1, [FC1])
    assert len(report.skipped) == 1
    assert str(key) in report.skipped[0]


@pytest.mark.parametrize("to", ["diffusers", "peft"])
def test_dora_on_some_layers_only_would_change_the_others(tmp_path: Path, to: str) -> None:
    keys = [TO_K, LayerKey("unet", TO_K.path.replace("to_k", "to_v"))]
    layers = {key: build(lora((12, 768), dora_scale=torch.rand(12, 1))) for key in keys}
    network = Network("n", {**layers, NET_2: build(lora(WEIGHTS[NET_2])), FC1: build(lora(WEIGHTS[FC1]))})
    with pytest.raises(BadConfig, match=r"1 layers \(unet:.*net\.2\): (diffusers takes|PEFT keeps)"):
        converted(tmp_path, network, to)


def test_peft_keeps_one_type_in_a_part(tmp_path: Path) -> None:
    loha = build(NOT_THERE["loha"][1])
    network = Network("n", {TO_K: loha, NET_2: build(lora(WEIGHTS[NET_2])), CONV: build(lora(WEIGHTS[CONV]))})
    with pytest.raises(BadConfig, match="one type in a file, here LORA, and this is LOHA"):
        converted(tmp_path, network, "peft")
    parted = Network("n", {TO_K: loha, FC1: build(lora(WEIGHTS[FC1]))})
    assert_same_changes(parted, read_back(converted(tmp_path, parted, "peft")), WEIGHTS)


@pytest.mark.parametrize(
    ("tensors", "key", "reason"),
    [
        ({"weight": torch.ones(12), "on_input": torch.tensor(0)}, NET_2, "scale its bias"),
        ({"diff": torch.ones(12, 8)}, NET_2, "type 'full'"),
    ],
)
def test_what_peft_cannot_hold(tmp_path: Path, tensors: dict[str, Tensor], key: LayerKey, reason: str) -> None:
    with pytest.raises(BadConfig, match=reason):
        converted(tmp_path, Network("n", {key: build(tensors)}), "peft")


@pytest.mark.parametrize(
    ("name", "tensors", "reason"),
    [
        ("conv1", {"ia3_l": torch.ones(1, 8, 1, 1)}, "IA3 scales the bias"),
        ("proj_in", {"ia3_l": torch.ones(8, 1)}, "IA3 scales the bias"),
        ("proj_in", {"oft_r": torch.zeros(2, 4, 4)}, "oft_r"),
        ("proj_in", {"boft_R": torch.zeros(1, 2, 4, 4), "boft_s": torch.ones(8, 1)}, "boft_R, boft_s"),
    ],
)
def test_what_kohyas_naming_cannot_say(tmp_path: Path, name: str, tensors: dict[str, Tensor], reason: str) -> None:
    path = "down_blocks.0.resnets.0.conv1" if name == "conv1" else "mid_block.attentions.0.proj_in"
    source = tmp_path / "adapter_model.safetensors"
    write_tensors(source, {f"base_model.model.{path}.{tensor}": t for tensor, t in tensors.items()})
    with pytest.raises(BadConfig, match=reason):
        convert(ConvertJob(source, tmp_path / "out.safetensors", "kohya"))


def test_pefts_ia3_and_lokr_in_kohyas_naming(tmp_path: Path) -> None:
    """What can be said is: 1 + w becomes w, a scale outside the factors goes into one of them."""
    source, out = tmp_path / "adapter_model.safetensors", tmp_path / "out.safetensors"
    wrapped = f"base_model.model.{TO_K.path}"
    for shape in ((1, 768), (12, 1)):
        write_tensors(source, {f"{wrapped}.ia3_l": torch.randn(shape)})
        convert(ConvertJob(source, out, "kohya"))
        assert read_network(out).layers[TO_K].kind == "ia3"
        weight = torch.randn(WEIGHTS[TO_K])
        theirs, ours = (read_network(path).layers[TO_K].delta(weight) for path in (source, out))
        assert torch.allclose(ours, theirs, atol=1e-6)
    write_tensors(source, {f"{wrapped}.lokr_w1": torch.randn(3, 4), f"{wrapped}.lokr_w2": torch.randn(4, 192)})
    (tmp_path / "adapter_config.json").write_text('{"alpha": 8, "r": 4, "rank_dropout_scale": false}')
    convert(ConvertJob(source, out, "kohya"))
    assert_same_changes(read_network(source), read_network(out), WEIGHTS)
    assert not any("scalar" in name for name in read_header(out).tensors)


def test_cloneofsimo_wants_all_layers(tmp_path: Path, tiny_model: DiffusersModel) -> None:
    layers = of_modules(tiny_model, lambda path: path.endswith(ATTENTION))
    odd = next(key for key in layers if key.part == "unet")
    del layers[odd]
    with pytest.raises(BadConfig, match="143 layers .*all 144 layers of a unet, and 1 are not there"):
        converted(tmp_path, Network("n", layers), "cloneofsimo")
    partly = convert(
        ConvertJob(tmp_path / "source.safetensors", tmp_path / "out.safetensors", "cloneofsimo", partial=True)
    )
    assert (partly.layers, len(partly.skipped)) == (48, 143)
    assert read_network(tmp_path / "out.safetensors").parts() == {"te1": 48}  # what is told to be left out is
    assert not any(name.startswith("unet") for name in read_header(tmp_path / "out.safetensors").metadata)
    layers = {key: layer for key, layer in layers.items() if key.part == "te1"}
    layers[NET_2] = build(lora(WEIGHTS[NET_2]))
    with pytest.raises(BadConfig, match=r"1 layers \(unet:.*net\.2\): it has no number there"):
        converted(tmp_path, Network("n", layers), "cloneofsimo")
    xl = Network("n", {LayerKey("te2", FC1.path): build(lora((10, 1280)))})
    with pytest.raises(BadConfig, match="for SD 1.x and SD 2.x"):
        converted(tmp_path, xl, "cloneofsimo")


def test_cloneofsimos_tables_and_tokens(tmp_path: Path, tiny_model: DiffusersModel) -> None:
    layers = of_modules(tiny_model, lambda path: path.endswith(ATTENTION))
    vectors = {"<s1>": {"clip_l": torch.randn(1, 8)}, "two": {"clip_l": torch.randn(2, 8)}}
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    write_network(source, Network("n", layers, embeddings=vectors))
    report = convert(ConvertJob(source, out, "cloneofsimo"))
    assert report.embeddings == ("two",)
    metadata = read_header(out).metadata
    ranks = {key.path: layer.rank for key, layer in layers.items() if key.part == "te1"}
    assert metadata["text_encoder:0:rank"] == str(ranks["text_model.encoder.layers.0.self_attn.k_proj"])
    assert json.loads(metadata["text_encoder"]) == ["CLIPAttention"]
    assert "GEGLU" in json.loads(metadata["unet"])
    back = read_network(out)
    assert back.parts() == {"unet": 144, "te1": 48}
    assert torch.equal(back.embeddings["<s1>"]["clip_l"], vectors["<s1>"]["clip_l"])
    convert(ConvertJob(out, tmp_path / "again.safetensors", "kohya"))
    assert not any(name.startswith(("unet", "<")) for name in read_header(tmp_path / "again.safetensors").metadata)


def test_sdxl_in_both_namings(tmp_path: Path) -> None:
    keys = [
        TO_K,
        LayerKey("unet", "down_blocks.2.attentions.1.transformer_blocks.9.attn1.to_q"),
        LayerKey("te2", "text_projection"),
    ]
    keys += [LayerKey("te1", FC1.path), LayerKey("te2", FC1.path), LayerKey("unet", "up_blocks.0.upsamplers.0.conv")]
    shapes = dict.fromkeys(keys, (12, 2048)) | {keys[-1]: (8, 8, 3, 3)}
    network = Network("n", {key: build(lora(shape)) for key, shape in shapes.items()})
    out = converted(tmp_path, network, "diffusers")
    assert "text_encoder_2.text_projection.lora_linear_layer.up.weight" in load_file(out)
    assert_same_changes(network, read_back(out), shapes)
    again = tmp_path / "again.safetensors"
    convert(ConvertJob(out, again, "kohya"))
    assert "lora_unet_output_blocks_2_2_conv.lora_up.weight" in load_file(again)
    assert_same_changes(network, read_network(again), shapes)


def test_names_nobody_understands_are_not_dropped_in_silence(tmp_path: Path) -> None:
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    tensors = network_tensors(Network("n", {TO_K: build(lora(WEIGHTS[TO_K]))}))
    write_tensors(source, {**tensors, "lora_unet_no_such_layer.alpha": torch.ones(())})
    with pytest.raises(BadConfig, match=r"1 names nobody understands \(lora_unet_no_such_layer\.alpha\)"):
        convert(ConvertJob(source, out, "diffusers"))
    assert convert(ConvertJob(source, out, "diffusers", True)).skipped == ("lora_unet_no_such_layer.alpha",)


def test_stale_scales_do_not_survive_in_the_metadata(tmp_path: Path) -> None:
    """diffusers' own record of the scale would count a second time."""
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    factors = {"lora_B.weight": torch.randn(12, 2), "lora_A.weight": torch.randn(2, 768)}
    write_tensors(
        source,
        {f"unet.{TO_K.path}.{name}": tensor for name, tensor in factors.items()},
        {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8}), "author": "somebody"},
    )
    convert(ConvertJob(source, out, "diffusers"))
    assert read_header(out).metadata == {"author": "somebody", "format": "pt"}
    assert_same_changes(read_network(source), read_network(out), WEIGHTS)


@pytest.mark.parametrize("to", DIALECTS)
def test_the_input_is_never_overwritten(tmp_path: Path, tiny_model: DiffusersModel, to: str) -> None:
    folder = tmp_path / "text_encoder"
    source = folder / "adapter_model.safetensors" if to == "peft" else tmp_path / "source.safetensors"
    layers = of_modules(tiny_model, lambda path: ".self_attn." in path)
    write_network(source, Network("n", {key: layer for key, layer in layers.items() if key.part == "te1"}))
    before = source.read_bytes()
    with pytest.raises(BadConfig, match="is the input; choose another name"):
        convert(ConvertJob(source, tmp_path if to == "peft" else source, to))
    assert source.read_bytes() == before
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [source]


def test_bad_jobs(tmp_path: Path) -> None:
    source = tmp_path / "source.safetensors"
    write_network(source, Network("n", {TO_K: build(lora(WEIGHTS[TO_K]))}))
    with pytest.raises(BadConfig, match="must be a file"):
        convert(ConvertJob(source, tmp_path, "kohya"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadConfig, match="must be a folder"):
        convert(ConvertJob(source, tmp_path / "file", "peft"))
    with pytest.raises(BadConfig, match="unknown dialect 'omi'; choose one of: kohya"):
        convert(ConvertJob(source, tmp_path / "x.safetensors", "omi"))
    write_tensors(source, {"lora_unet_double_blocks_0_img_attn_proj.alpha": torch.ones(())})
    with pytest.raises(BadConfig, match="cannot be written whole|is for Flux"):
        convert(ConvertJob(source, tmp_path / "x.safetensors", "kohya"))
    write_tensors(source, {"x": torch.ones(())})
    with pytest.raises(UnknownFormat):
        convert(ConvertJob(source, tmp_path / "x.safetensors", "kohya"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    layers = {TO_K: build(lora(WEIGHTS[TO_K])), LayerKey("unet", "conv_norm_out"): build({"w_norm": torch.ones(8)})}
    write_network(source, Network("n", layers, embeddings={"cat": {"clip_l": torch.ones(1, 8)}}))
    arguments = ["convert", str(source), "-o", str(out), "--to", "diffusers"]
    assert main(arguments) == 2
    assert "type 'norm'" in capsys.readouterr().err
    assert main([*arguments, "--partial"]) == 0
    told = capsys.readouterr().out
    assert "1 layers written" in told
    assert "left out: unet:conv_norm_out: type 'norm'" in told
    assert "left out: the embedding 'cat'" in told
    assert main([*arguments, "--partial", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["embeddings"] == ["cat"]
    assert command.DIALECTS == DIALECTS
