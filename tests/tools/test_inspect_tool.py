"""`inspect`: the facts of a file, for people and as JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from lib_lora.__main__ import main
from lib_lora.files.codec import write_network
from lib_lora.keys.layer_key import LayerKey
from lib_lora.networks.base import LayerSpec
from lib_lora.networks.lora import Lora
from lib_lora.networks.network import Network
from lib_lora.tools.inspect import inspect


@pytest.fixture
def file(tmp_path: Path) -> Path:
    attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    layers = {
        LayerKey("unet", attention): Lora.init(LayerSpec((8, 768), 4, 2.0)),
        LayerKey("unet", "conv_in"): Lora.init(LayerSpec((8, 4, 3, 3), 2, 1.5)),
        LayerKey("te1", "text_model.encoder.layers.0.mlp.fc1"): Lora.init(LayerSpec((8, 8), 4, 2.0)),
    }
    path = tmp_path / "x.safetensors"
    write_network(path, Network("x", layers), {"ss_seed": "7", "long": "y" * 500}, torch.float16)
    return path


def test_facts(file: Path) -> None:
    facts = inspect(file)
    assert (facts["base_version"], facts["dialect"], facts["layers"]) == ("sd1", "kohya", 3)
    assert facts["types"] == {"lora": 3}
    assert facts["parts"] == {"unet": 2, "te1": 1}
    assert facts["ranks"] == {"4": 2, "2": 1}
    assert facts["alphas"] == {"2": 2, "1.5": 1}
    assert facts["dtypes"] == {"F16": 6, "F32": 3}
    assert facts["metadata"]["ss_seed"] == "7"
    assert facts["hashes"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_command(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [inspect(file)]
    assert main(["inspect", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "te1: 1, unet: 2" in shown
    assert "(500 characters)" in shown


def test_a_bad_file_does_not_hide_the_good_one(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = file.with_name("bad.safetensors")
    bad.write_bytes(b"x" * 100)
    assert main(["inspect", str(bad), str(file), "--json"]) == 2
    captured = capsys.readouterr()
    assert "bad.safetensors" in captured.err
    assert len(json.loads(captured.out)) == 1


def test_an_alpha_of_one_axis_is_read(tmp_path: Path) -> None:
    from lib_lora.files.tensors import write_tensors

    prefix = "lora_unet_mid_block_attentions_0_proj_in"
    factors = {f"{prefix}.lora_up.weight": torch.ones(4, 2), f"{prefix}.lora_down.weight": torch.ones(2, 4)}
    write_tensors(tmp_path / "x.safetensors", {**factors, f"{prefix}.alpha": torch.tensor([0.5])})
    assert inspect(tmp_path / "x.safetensors")["alphas"] == {"0.5": 1}


def test_nothing_is_printed_for_bad_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "none.safetensors")]) == 2
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1
