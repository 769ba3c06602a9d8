"""File <-> Network: round trips in kohya's naming, other dialects, and files that are partly or wholly bad."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_lora.errors import BadFile, UnknownFormat
from lib_lora.files.codec import base_version, network_tensors, read_network, read_outline, write_network
from lib_lora.files.tensors import write_tensors
from lib_lora.keys.checkpoint import default_targets
from lib_lora.keys.layer_key import LayerKey
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
    other = NAME.replace("to_k", "to_v")
    dora = NAME.replace("to_k", "to_q")
    pair = {"lora_up.weight": torch.ones(4, 2), "lora_down.weight": torch.ones(2, 4)}
    bad = {
        f"{other}.lora_up.weight": torch.ones(4, 3),
        f"{other}.lora_down.weight": torch.ones(2, 4),
        **{f"{dora}.{n}": t for n, t in pair.items()},
        f"{dora}.dora_scale": torch.ones(1, 4),
        "strange": torch.ones(1),
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


def test_no_network_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"model.diffusion_model.out.2.weight": torch.ones(1)})
    with pytest.raises(UnknownFormat, match=r"x\.safetensors.*'model\.diffusion_model\.out\.2\.weight'"):
        read_network(path)


@pytest.mark.parametrize(
    ("name", "width", "version"),
    [
        (NAME, 768, "sd1"),
        (NAME, 1024, "sd2"),
        (NAME, 64, "sd1"),
        ("lora_te_text_model_encoder_layers_22_self_attn_q_proj", 1024, "sd2"),
        ("lora_te2_text_model_encoder_layers_22_self_attn_q_proj", 1280, "sdxl"),
        ("lora_unet_output_blocks_0_1_transformer_blocks_9_attn2_to_k", 2048, "sdxl"),
        ("lora_unet_double_blocks_0_img_attn_proj", 8, "flux"),
    ],
)
def test_base_version(tmp_path: Path, name: str, width: int, version: str) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {f"{name}.lora_up.weight": torch.ones(4, 2), f"{name}.lora_down.weight": torch.ones(2, width)})
    assert base_version(read_network(path)) == version
    assert base_version(read_outline(path)) == version


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
