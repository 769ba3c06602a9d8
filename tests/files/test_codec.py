"""File <-> Network: round trips in kohya's naming, other dialects, and files that are partly or wholly bad."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lib_lora.errors import BadConfig, BadFile, ShapeMismatch, UnknownFormat
from lib_lora.files.codec import (
    base_version,
    base_versions,
    network_tensors,
    read_network,
    read_outline,
    write_network,
)
from lib_lora.files.tensors import read_header, write_tensors
from lib_lora.keys import tensor_names, text_encoder
from lib_lora.keys.checkpoint import default_targets
from lib_lora.keys.layer_key import LayerKey
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.networks import registry
from lib_lora.networks.base import LayerSpec
from lib_lora.networks.lora import Lora
from lib_lora.networks.network import Network

Q = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


def full_network(width: int = 8) -> Network:
    """All 192 + 72 default layers and one Tucker convolution."""
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for part in ("unet", "te1"):
        for path in default_targets(part):
            layer = Lora.init(LayerSpec((width, width), 2, 1.5), generator)
            layer.up.data.normal_(generator=generator)
            layers[LayerKey(part, path)] = layer
    conv = Lora.init(LayerSpec((8, 8, 3, 3), 2, 1.0, {"tucker": True}), generator)
    layers[LayerKey("unet", "down_blocks.0.resnets.0.conv1")] = conv
    return Network("full", layers, {"ss_seed": "1"})


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], t) and one[k].dtype == t.dtype for k, t in two.items())


def test_round_trip_in_kohyas_names(tmp_path: Path) -> None:
    network = full_network()
    path = tmp_path / "full.safetensors"
    write_network(path, network)
    back = read_network(path)
    assert back.parts() == {"unet": 193, "te1": 72}
    assert (back.name, back.dialect, back.unknown) == ("full", "kohya", ())
    assert back.metadata == network.metadata
    assert equal(network_tensors(back), network_tensors(network))
    again = tmp_path / "again.safetensors"
    write_network(again, back)
    assert again.read_bytes() == path.read_bytes()
    outline = read_outline(path)
    assert outline.parts() == back.parts()
    assert all(outline.layers[k].alpha == layer.alpha for k, layer in back.layers.items())


def test_dtype_of_the_file_but_never_of_alpha(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_network(path, full_network(), {"a": "b"}, torch.float16)
    back = read_network(path, "other")
    assert (back.name, back.metadata) == ("other", {"a": "b"})
    tensors = network_tensors(back)
    assert {t.dtype for n, t in tensors.items() if not n.endswith("alpha")} == {torch.float16}
    assert {t.dtype for n, t in tensors.items() if n.endswith("alpha")} == {torch.float32}


def test_strange_and_damaged_layers_do_not_cost_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    other, whole, alone, half = (
        NAME.replace("to_k", n) for n in ("to_v", "to_q", "to_out_0", "to_k".replace("k", "x"))
    )
    pair = {"lora_up.weight": torch.ones(4, 2), "lora_down.weight": torch.ones(2, 4)}
    bad = {
        f"{other}.lora_up.weight": torch.ones(4, 3),
        f"{other}.lora_down.weight": torch.ones(2, 4),
        **{f"{whole}.{n}": t.int() for n, t in pair.items()},
        f"{alone}.lora_up.weight": torch.ones(4, 2),
        **{f"{half}.{n}": t for n, t in pair.items()},
        "strange": torch.ones(1),
        f"{NAME}.what.is.this": torch.ones(1).int(),
    }
    write_tensors(path, {**{f"{NAME}.{n}": t for n, t in pair.items()}, **bad})
    network = read_network(path)
    assert list(network.layers) == [LayerKey("unet", Q)]
    assert sorted(network.unknown) == sorted(bad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_refused_with_the_tensors_name(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "x.safetensors"
    up = torch.ones(4, 2).half()
    up[1, 1] = bad
    write_tensors(path, {f"{NAME}.lora_up.weight": up, f"{NAME}.lora_down.weight": torch.ones(2, 4)})
    with pytest.raises(BadFile, match=f"x.safetensors holds NaN.*{NAME}.lora_up.weight"):
        read_network(path)


@pytest.mark.parametrize(
    "alpha", [torch.tensor(9_999_999_999.0), torch.tensor(9_999_999_999), torch.tensor(float("inf")).half()]
)
def test_an_alpha_that_means_nothing_may_be_any_number(tmp_path: Path, alpha: Tensor) -> None:
    """Trainers write the endless rank that they are given for "as large as possible", in float16 as infinite."""
    path = tmp_path / "x.safetensors"
    whole = {"lokr_w1": torch.randn(2, 2), "lokr_w2": torch.randn(4, 4)}
    for tensors in (whole, {"diff": torch.randn(8, 8)}):
        write_tensors(path, {f"{NAME}.{n}": t for n, t in {**tensors, "alpha": alpha}.items()})
        network = read_network(path)
        (layer,) = network.layers.values()
        expected = tensors["diff"] if "diff" in tensors else torch.kron(tensors["lokr_w1"], tensors["lokr_w2"])
        assert torch.equal(layer.delta(torch.zeros(8, 8)), expected)
        write_network(path, network)
        assert read_network(path).layers.keys() == network.layers.keys()
    counted = {f"{NAME}.lora_up.weight": torch.ones(8, 2), f"{NAME}.lora_down.weight": torch.ones(2, 8)}
    write_tensors(path, {**counted, f"{NAME}.alpha": alpha})
    with pytest.raises(BadFile, match=f"{NAME}.alpha"):
        read_network(path)


def test_what_a_strange_tensor_of_a_layer_holds_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    pair = {f"{NAME}.lora_up.weight": torch.ones(4, 2), f"{NAME}.lora_down.weight": torch.ones(2, 4)}
    write_tensors(path, {**pair, f"{NAME}.strange": torch.full((3,), float("nan"))})
    network = read_network(path)
    assert list(network.layers) == [LayerKey("unet", Q)] and network.unknown == (f"{NAME}.strange",)


def test_no_network_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"something.else": torch.ones(1)})
    with pytest.raises(UnknownFormat, match=r"x\.safetensors.*'something\.else'.*choose a LoRA"):
        read_network(path)
    write_tensors(path, {"model.diffusion_model.out.2.weight": torch.ones(1)})
    with pytest.raises(UnknownFormat, match=r"x\.safetensors is no network.*checkpoints folder"):
        read_network(path)


def test_a_control_lora_is_refused_though_its_layers_have_names_of_the_unet(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    layers = {f"input_blocks.1.1.proj_in.{n}": torch.ones(4, 4) for n in ("up", "down")}
    write_tensors(path, {"lora_controlnet": torch.empty(0), "input_hint_block.0.weight": torch.ones(1), **layers})
    with pytest.raises(UnknownFormat, match="control-lora.*ControlNet extension"):
        read_network(path)


TO_K = "transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        (NAME, 768, ("sd1",)),
        (NAME, 1024, ("sd2",)),
        (NAME, 2048, ("sdxl",)),
        (NAME, 1280, ("sdxl-refiner",)),
        (NAME, 64, ("sd1", "sd2", "sdxl")),
        (f"lora_unet_down_blocks_0_attentions_0_{TO_K}", 64, ("sd1", "sd2")),
        (f"lora_unet_output_blocks_0_1_{TO_K.replace('blocks_0', 'blocks_9')}", 64, ("sdxl",)),
        ("lora_te_text_model_encoder_layers_2_self_attn_q_proj", 768, ("sd1", "sdxl")),
        ("lora_te_text_model_encoder_layers_22_self_attn_q_proj", 1024, ("sd2",)),
        ("lora_te2_text_model_encoder_layers_22_self_attn_q_proj", 1280, ("sdxl",)),
        ("lora_unet_double_blocks_0_img_attn_proj", 8, ("flux",)),
    ],
)
def test_base_version(tmp_path: Path, name: str, width: int, expected: tuple[str, ...]) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {f"{name}.lora_up.weight": torch.ones(4, 2), f"{name}.lora_down.weight": torch.ones(2, width)})
    for read in (read_network, read_outline):
        assert base_versions(read(path)) == expected
        assert base_version(read(path)) == expected[0]


PER_TYPE: dict[str, dict[str, tuple[int, ...]]] = {
    "lora": {"lora_up.weight": (8, 2), "lora_down.weight": (2, 768)},
    "loha": {"hada_w1_a": (8, 2), "hada_w1_b": (2, 768), "hada_w2_a": (8, 2), "hada_w2_b": (2, 768)},
    "lokr": {"lokr_w1": (2, 4), "lokr_w2": (4, 192)},
    "lokr, factors": {"lokr_w1": (2, 4), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 192)},
    "full": {"diff": (8, 768)},
    "set": {"set_weight": (8, 768)},
    "glora": {"a1.weight": (768, 2), "a2.weight": (2, 768), "b1.weight": (8, 2), "b2.weight": (2, 768)},
    "glora, old": {"a1.weight": (2, 768), "a2.weight": (768, 2), "b1.weight": (2, 768), "b2.weight": (8, 2)},
    "ia3": {"weight": (768,), "on_input": (1,)},
    "tlora": {"q_layer.weight": (2, 768), "p_layer.weight": (8, 2), "lambda_layer": (1, 2)},
    "peft oft": {"oft_R.weight": (192, 6)},
    "peft oft blocks": {"oft_r": (192, 4, 4), "oft_s": (8, 1)},
    "dora": {"lora_up.weight": (8, 2), "lora_down.weight": (2, 768), "dora_scale": (8, 1)},
}


@pytest.mark.parametrize("kind", PER_TYPE)
def test_base_version_of_every_type(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {f"{NAME}.{name}": torch.ones(shape) for name, shape in PER_TYPE[kind].items()})
    network = read_outline(path)
    assert not network.unknown
    assert base_versions(network) == ("sd1",)
    assert all(tensor_names.known(name) for name in PER_TYPE[kind])


def test_every_tensor_of_every_type_is_known() -> None:
    """A type whose tensors are not listed would be read as strange names."""
    for kind in registry.TYPES:
        for shape in ((8, 8), (8, 8, 3, 3), (8,)):
            try:
                layer = kind.init(LayerSpec(shape, 2, 1.0))
            except (BadConfig, ShapeMismatch, IndexError, ValueError):
                continue  # not for such weights
            assert all(map(tensor_names.known, layer.to_tensors())), kind
    assert all(map(tensor_names.known, (name for modifier in registry.MODIFIERS for name in modifier.NAMES)))


class TestSdxl:
    """SDXL is written in sgm's names and read in either."""

    def test_round_trip_of_722_72_and_192_layers(self, tmp_path: Path) -> None:
        layers = {
            LayerKey(part, path): Lora(torch.randn(4, 1), torch.randn(1, 4), 0.5)
            for part in ("unet", "te1", "te2")
            for path in default_targets(part, "sdxl")
        }
        path = tmp_path / "xl.safetensors"
        network = Network("xl", layers)
        write_network(path, network)
        names = read_header(path).tensors
        assert "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_v.alpha" in names
        assert "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha" in names
        back = read_network(path)
        assert back.parts() == {"unet": 722, "te1": 72, "te2": 192}
        assert not back.unknown
        assert equal(network_tensors(back), network_tensors(network))


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_bundled_embeddings_travel_with_the_network(tmp_path: Path, dtype: torch.dtype | None) -> None:
    path = tmp_path / "x.safetensors"
    vectors = {"clip_l": torch.randn(2, 8), "clip_g": torch.randn(2, 12)}
    layer = Lora(torch.randn(4, 1), torch.randn(1, 4))
    write_network(path, Network("x", {LayerKey("unet", Q): layer}, embeddings={"my.cat": vectors}), dtype=dtype)
    back = read_network(path)
    assert (list(back.embeddings), back.unknown) == (["my.cat"], ())
    assert equal(dict(back.embeddings["my.cat"]), vectors)


def test_embeddings_alone_are_a_network_too(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"<s1>": torch.ones(8)}, {"<s1>": "<embed>"})
    network = read_network(path)
    assert network.embeddings["<s1>"]["clip_l"].shape == (1, 8)
    assert base_version(network) == "unknown"
    write_tensors(path, {"bundle_emb.a.clip_l": torch.full((1, 8), float("nan"))})
    with pytest.raises(BadFile, match="NaN"):
        read_network(path)


@pytest.mark.parametrize("zero", [True, False])
def test_kohyas_oft_keeps_its_meaning_of_alpha(tmp_path: Path, zero: bool) -> None:
    """By 0 kohya means that nothing may move, LyCORIS that everything may."""
    blocks, alpha = torch.randn(2, 4, 4), torch.tensor(0.0 if zero else 1e-3)
    path, again = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    oft = NAME.replace("lora_", "oft_")
    write_tensors(path, {f"{oft}.oft_blocks": blocks, f"{oft}.alpha": alpha})
    network = read_network(path)
    write_network(again, network)
    assert again.read_bytes() == path.read_bytes()
    weight = torch.randn(8, 8)
    kohyas = float(network.layers[LayerKey("unet", Q)].delta(weight).abs().max())
    write_tensors(path, {f"{NAME}.oft_blocks": blocks, f"{NAME}.alpha": alpha})
    lycoris = float(read_network(path).layers[LayerKey("unet", Q)].delta(weight).abs().max())
    assert (kohyas < 1e-5 < lycoris) if zero else kohyas == pytest.approx(lycoris, rel=1e-4)


def test_cloneofsimo_and_peft_files(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    up, down = torch.randn(8, 1), torch.randn(1, 8)
    write_tensors(path, {"text_encoder:0:up": up, "text_encoder:0:down": down}, {"text_encoder:0:rank": "1"})
    network = read_network(path)
    key = LayerKey("te1", "text_model.encoder.layers.0.self_attn.k_proj")
    assert network.dialect == "cloneofsimo"
    assert torch.equal(network.layers[key].delta(torch.zeros(8, 8)), up @ down)
    write_tensors(path, {f"unet.{Q}.lora_B.weight": up, f"unet.{Q}.lora_A.weight": down})
    layer = read_network(path).layers[LayerKey("unet", Q)]
    assert torch.equal(layer.delta(torch.zeros(8, 8)), up @ down)


def test_cloneofsimos_pickled_lists(tmp_path: Path, tiny_model: DiffusersModel) -> None:
    """up, down, up, down, ... of the UNet in one file and of the text encoder in another beside it."""
    lists: dict[str, list[Tensor]] = {"unet": [], "te1": []}
    modules = {key: module.weight.shape for key, module in tiny_model.modules_by_key().items()}
    attention = (".to_q", ".to_k", ".to_v", ".to_out.0", ".ff.net.0.proj")
    unet = [key for key in modules if key.part == "unet" and key.path.endswith(attention)]
    text = [LayerKey("te1", path) for path in text_encoder.attention_targets()]
    for i, key in enumerate([*unet, *text]):
        out, width = modules[key]
        lists[key.part] += [torch.full((out, 2), float(i)), torch.ones(2, width)]
    path, beside = tmp_path / "x.pt", tmp_path / "x.text_encoder.pt"
    torch.save(lists["unet"], path)
    torch.save(lists["te1"], beside)
    for file, parts in ((path, {"unet": 144, "te1": 48}), (beside, {"te1": 48})):
        network = read_network(file)
        assert (network.parts(), network.unknown, network.dialect) == (parts, (), "cloneofsimo")
        for i, key in enumerate([*unet, *text]):
            if key in network.layers:
                assert float(network.layers[key].to_tensors()["lora_up.weight"][0, 0]) == i
    beside.rename(tmp_path / "renamed.pt")
    assert read_network(tmp_path / "renamed.pt").parts() == {"te1": 48}


def test_a_known_base_version_names_the_layers_where_they_do_not_tell_it(tmp_path: Path) -> None:
    key = LayerKey("te1", "text_model.encoder.layers.0.self_attn.q_proj")
    layer = Lora(torch.zeros(768, 4), torch.zeros(4, 768), 4.0)
    for version, prefix in (("", "lora_te_"), ("sd1", "lora_te_"), ("sdxl", "lora_te1_")):
        path = tmp_path / f"x{version}.safetensors"
        write_network(path, Network("x", {key: layer}, version=version))
        assert all(name.startswith(prefix) for name in load_file(str(path)))
        assert list(read_network(path).layers) == [key]
