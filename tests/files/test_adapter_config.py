"""PEFT's own folders, written by PEFT, read as the weights PEFT merges; and configurations that are nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib_lora.files.codec import read_network
from lib_lora.keys import peft_config
from lib_lora.keys.layer_key import TE1, UNET, LayerKey
from lib_lora.networks.network import Network

peft = pytest.importorskip("peft")

LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
OTHER = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
CONV = "down_blocks.0.resnets.0.conv1"
TOKENS = "text_model.embeddings.token_embedding"


class Tree(nn.Module):
    """Modules under the paths of a UNet."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for path, module in modules.items():
            node: nn.Module = self
            *steps, last = path.split(".")
            for step in steps:
                if not hasattr(node, step):
                    node.add_module(step, nn.Module())
                node = getattr(node, step)
            node.add_module(last, module)


def tree() -> Tree:
    torch.manual_seed(3)
    layers = {LINEAR: nn.Linear(12, 16), OTHER: nn.Linear(16, 12), CONV: nn.Conv2d(6, 8, 3)}
    return Tree(layers).double()


def saved(tmp_path: Path, config: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Train-like random factors, saved by PEFT; the weights before and after PEFT merges them."""
    model = peft.get_peft_model(tree(), config)
    before = {name: value.clone() for name, value in tree().state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(parameter + torch.randn_like(parameter) * 0.2)
    model.save_pretrained(tmp_path, safe_serialization=True)
    merged = model.double().merge_and_unload()
    return before, dict(merged.state_dict())


def assert_same(network: Network, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    assert changed
    for name in changed:
        path, _, parameter = name.rpartition(".")
        layer = network.layers[LayerKey(UNET, path)]
        change = layer.delta(before[name]) if parameter == "weight" else layer.bias_delta(before[name])
        scale = (after[name] - before[name]).abs().max()
        assert (before[name] + change - after[name]).abs().max() <= 1e-6 * scale, name


def lora(**options: Any) -> Callable[[], Any]:
    return lambda: peft.LoraConfig(r=4, target_modules=["to_k", "net.2", "conv1"], **options)


CONFIGS: dict[str, Callable[[], Any]] = {
    "lora": lora(lora_alpha=6),
    "rslora": lora(lora_alpha=6, use_rslora=True),
    "patterns": lora(lora_alpha=6, rank_pattern={"to_k": 2}, alpha_pattern={"to_k": 5, OTHER: 1}),
    "rslora with patterns": lora(lora_alpha=6, use_rslora=True, rank_pattern={"conv1": 3}, alpha_pattern={"conv1": 2}),
    "dora": lora(lora_alpha=6, use_dora=True),
    "loha": lambda: peft.LoHaConfig(r=4, alpha=6, target_modules=["to_k", "conv1"]),
    "loha, effective": lambda: peft.LoHaConfig(r=4, alpha=6, target_modules=["conv1"], use_effective_conv2d=True),
    "lokr": lambda: peft.LoKrConfig(r=1, alpha=1, target_modules=["to_k", "net.2"], decompose_both=True),
    "ia3": lambda: peft.IA3Config(target_modules=["to_k", "net.2"], feedforward_modules=["net.2"]),
    "oft": lambda: peft.OFTConfig(r=4, target_modules=["to_k"]),
    "oft, constrained": lambda: peft.OFTConfig(r=4, target_modules=["to_k"], coft=True, eps=0.3),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_peft_saves_is_read_as_peft_merges_it(kind: str, tmp_path: Path) -> None:
    before, after = saved(tmp_path, CONFIGS[kind]())
    network = read_network(tmp_path / "adapter_model.safetensors")
    assert (network.unknown, network.dialect) == ((), "peft")
    assert_same(network, before, after)


def test_a_renamed_file_takes_the_configuration_that_has_its_name(tmp_path: Path) -> None:
    before, after = saved(tmp_path, CONFIGS["rslora"]())
    path = (tmp_path / "adapter_model.safetensors").rename(tmp_path / "cat.v1.safetensors")
    with pytest.raises(AssertionError):  # somebody else's configuration in the folder does not count
        assert_same(read_network(path), before, after)
    (tmp_path / "adapter_config.json").rename(tmp_path / "cat.v1.adapter_config.json")
    assert_same(read_network(path), before, after)


def test_diffusers_metadata(tmp_path: Path) -> None:
    """One JSON object, parts before the dot; it counts before a file beside."""
    before, after = saved(tmp_path, CONFIGS["rslora with patterns"]())
    path = tmp_path / "adapter_model.safetensors"
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    wanted = ("r", "lora_alpha", "use_rslora", "alpha_pattern", "rank_pattern", "bias", "target_modules")
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{name}": config[name] for name in wanted})}
    tensors = {name.replace("base_model.model.", "unet."): t for name, t in load_file(path).items()}
    save_file(tensors, path, metadata)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 1000}')
    assert_same(read_network(path), before, after)


def test_modules_saved_whole_and_trained_biases(tmp_path: Path) -> None:
    before, after = saved(tmp_path, lora(lora_alpha=6, bias="all", modules_to_save=["net.2"])())
    network = read_network(tmp_path / "adapter_model.safetensors")
    assert network.layers[LayerKey(UNET, OTHER)].kind in ("set", "set_bias")
    assert_same(network, before, after)


def test_embedding(tmp_path: Path) -> None:
    torch.manual_seed(1)
    base = nn.Embedding(20, 8).double()
    model = peft.get_peft_model(
        Tree({TOKENS: base}), peft.LoraConfig(r=2, lora_alpha=3, target_modules=["token_embedding"])
    )
    weight = base.weight.detach().clone()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_embedding" in name:
                parameter.copy_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    merged = dict(model.double().merge_and_unload().state_dict())[f"{TOKENS}.weight"]
    layer = read_network(tmp_path / "adapter_model.safetensors").layers[LayerKey(TE1, TOKENS)]
    assert torch.allclose(weight + layer.delta(weight), merged, rtol=0, atol=1e-12)


KEY = LayerKey(UNET, LINEAR)
LORA = {"lora_up.weight": (16, 4), "lora_down.weight": (4, 12)}
LOKR = {"lokr_w1": (4, 4), "lokr_w2": (4, 3)}


@pytest.mark.parametrize(
    ("config", "tensors", "expected"),
    [
        ({"lora_alpha": 6}, LORA, {"alpha": 6.0}),
        ({"lora_alpha": 6, "use_rslora": True}, LORA, {"alpha": 12.0}),
        ({"lora_alpha": 6}, {**LORA, "alpha": ()}, {}),
        ({"lora_alpha": 6, "alpha_pattern": {"^to_k": 2}}, LORA, {"alpha": 2.0}),
        ({"lora_alpha": 6, "alpha_pattern": {"o_k": 2, "(a+)+": 3}}, LORA, {"alpha": 6.0}),
        ({"alpha": 8, "r": 4}, LOKR, {}),
        ({"alpha": 8, "r": 4, "rank_dropout_scale": False}, LOKR, {"scalar": 2.0}),
        ({"alpha": 8, "r": 8, "rank_dropout_scale": False}, LOKR, {}),
        ({"alpha": 8, "r": 8}, {"lokr_w1": (4, 4), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 3)}, {}),
        ({"use_cayley_neumann": False}, {"oft_R": (2, 3)}, {"neumann_terms": 0.0}),
        ({"use_cayley_neumann": True}, {"oft_R": (2, 3)}, {"neumann_terms": 5.0, "neumann_last": 2.0}),
        (
            {"use_cayley_neumann": True, "num_cayley_neumann_terms": 3, "peft_version": "0.18.0"},
            *({"oft_R": (2, 3)}, {"neumann_terms": 3.0, "neumann_last": 1.0}),
        ),
        ({"coft": True, "eps": 0.5}, {"oft_r": (2, 3, 3)}, {"coft_eps": 0.5}),
        ({"coft": False, "eps": 0.5}, {"oft_r": (2, 3, 3)}, {}),
        *(({"lora_alpha": odd}, LORA, {}) for odd in (None, True, "8", [], {}, float("nan"), 10**400)),
        ({"lora_alpha": 8, "alpha_pattern": ["to_k"]}, LORA, {"alpha": 8.0}),
        ({"lora_alpha": 8}, {"lora_up.weight": (), "lora_down.weight": ()}, {}),
        ({}, LORA, {}),
    ],
)
def test_constants(config: dict[str, Any], tensors: dict[str, Any], expected: dict[str, float]) -> None:
    assert peft_config.constants(config, KEY, tensors) == expected


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", "[" * 5000, '{"x.lora_alpha": 1}', '{"unet": 1}'])
def test_metadata_that_say_nothing(text: str) -> None:
    assert peft_config.from_metadata({"lora_adapter_metadata": text}) == {}


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]", b"{}" + b" " * (1 << 20)])
def test_a_bad_configuration_beside_leaves_the_scale_at_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "adapter_model.safetensors"
    up, down = torch.ones(16, 4), torch.ones(4, 12)
    save_file({f"{LINEAR}.lora_B.weight": up, f"{LINEAR}.lora_A.weight": down}, path)
    (tmp_path / "adapter_config.json").write_bytes(content)
    assert torch.equal(read_network(path).layers[KEY].delta(torch.zeros(16, 12)), up @ down)
