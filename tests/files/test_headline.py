"""The quick look against the full reading, on files of every dialect, and on damaged ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_lora.files import headline as module
from lib_lora.files.headline import Headline, read_headline
from lib_lora.files.tensors import write_tensors
from lib_lora.keys.checkpoint import default_targets
from lib_lora.keys.layer_key import LayerKey

ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
FLAT = "lora_unet_" + ATTENTION.replace(".", "_")
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def pair(width: int = 768, rank: int = 2) -> dict[str, Tensor]:
    return {"lora_down.weight": torch.ones(rank, width), "lora_up.weight": torch.ones(4, rank)}


def layer(module: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{module}.{name}": tensor for name, tensor in tensors.items()}


def full_sd1() -> dict[str, Tensor]:
    """All 264 layers of a default network, SD1's widths where they tell the version."""
    tensors: dict[str, Tensor] = {}
    for part, prefix in (("te1", "lora_te_"), ("unet", "lora_unet_")):
        for path in default_targets(part):
            tensors |= layer(prefix + LayerKey(part, path).flat, {**pair(), "alpha": torch.tensor(1.0)})
    return tensors


CASES: dict[str, tuple[dict[str, Tensor], str, str, int]] = {
    "kohya sd1": (full_sd1(), "sd1", "lora", 264),
    "sd2": (layer(FLAT, pair(1024)), "sd2", "lora", 1),
    "sdxl": (layer(FLAT.replace("blocks_0_attn2", "blocks_9_attn2"), pair(2048)), "sdxl", "lora", 1),
    "second encoder": (layer(TEXT.replace("te_", "te2_"), pair(1280)), "sdxl", "lora", 1),
    "loha": (
        layer(FLAT, {f"hada_w{i}_{x}": torch.ones(*((4, 2) if x == "a" else (2, 768))) for i in (1, 2) for x in "ab"}),
        "sd1",
        "loha",
        1,
    ),
    "peft": (
        {f"unet.{ATTENTION}.lora_A.weight": torch.ones(2, 768), f"unet.{ATTENTION}.lora_B.weight": torch.ones(4, 2)},
        "sd1",
        "lora",
        1,
    ),
    "flux": (layer("lora_unet_double_blocks_0_img_attn_proj", pair(64)), "flux", "lora", 1),
    "cloneofsimo": ({"text_encoder:0:up": torch.ones(8, 1), "text_encoder:0:down": torch.ones(1, 8)}, "sd1", "lora", 1),
}


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("form", ["safetensors", "zip", "older"])
def test_version_type_and_number_of_layers(tmp_path: Path, case: str, form: str) -> None:
    tensors, version, kind, layers = CASES[case]
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pt")
    if form == "safetensors":
        write_tensors(path, tensors, {"ss_output_name": "my ünïcode name", "sshs_model_hash": "0a" * 32})
        assert read_headline(path) == Headline("my ünïcode name", version, kind, layers, "0a" * 32)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
        assert read_headline(path) == Headline("", version, kind, layers)


@pytest.mark.parametrize("case", list(CASES))
def test_the_version_is_that_of_the_full_reading(tmp_path: Path, case: str) -> None:
    from lib_lora.files.codec import base_version, read_outline

    path = tmp_path / "x.safetensors"
    write_tensors(path, CASES[case][0])
    assert read_headline(path).version == base_version(read_outline(path))


def test_a_large_header_is_not_parsed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, full_sd1(), {"ss_output_name": "x"})

    def never(_: Path) -> Headline:
        raise AssertionError("read in full")

    monkeypatch.setattr(module, "_full", never)
    assert read_headline(path).layers == 264


def test_long_metadata_do_not_hide_the_layers(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors: dict[str, Tensor] = {}
    for i in range(32):
        tensors |= layer(f"lora_te2_text_model_encoder_layers_{i}_self_attn_q_proj", pair(1280))
    write_tensors(path, tensors, {"ss_tag_frequency": "ü猫" * 500_000, "ss_output_name": "x"})
    assert read_headline(path) == Headline("x", "sdxl", "lora", 32)


def test_unusual_headers_are_read_in_full(tmp_path: Path) -> None:
    entries = {
        f"{FLAT}.lora_down.weight": {"data_offsets": [0, 3072], "shape": [1, 768], "dtype": "F32"},
        f"{FLAT}.lora_up.weight": {"data_offsets": [3072, 3088], "shape": [4, 1], "dtype": "F32"},
        "__metadata__": {"ss_output_name": "last"},
    }
    text = json.dumps(entries, indent=4).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(3088))
    assert read_headline(path) == Headline("last", "sd1", "lora", 1)


@pytest.mark.parametrize("width", ["7\f68", "7 68", "null", "-768", "7.68e2", "9" * 5000, '"768"', "[768]"])
def test_odd_numbers_are_a_fault_or_no_number(tmp_path: Path, width: str) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, layer(FLAT, pair()))
    content = path.read_bytes()
    text = content[8 : 8 + int.from_bytes(content[:8], "little")].replace(b"768", width.encode())
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[-6176:])
    assert read_headline(path).alias == ""


def test_metadata_cannot_pass_for_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    fake = (
        '"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight":{"dtype":"F16","shape":[1,2],"data_offsets":[0,1]}'
    )
    write_tensors(path, layer(FLAT, pair()), {"a": fake, "ss_output_name": 'quote " and \\ and }'})
    assert read_headline(path) == Headline('quote " and \\ and }', "sd1", "lora", 1)


def test_a_hash_that_is_none_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, layer(FLAT, pair()), {"sshs_model_hash": "../../x"})
    assert read_headline(path).stated_hash == ""


@pytest.mark.parametrize("cut", [0, 5, 8, 40, -1])
def test_damaged_files_tell_their_fault(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, layer(FLAT, pair()), {"ss_output_name": "x"})
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    found = read_headline(path)
    assert str(path) in found.fault
    assert found == Headline(fault=found.fault)


def test_a_missing_file_and_a_folder_tell_so(tmp_path: Path) -> None:
    assert "cannot read" in read_headline(tmp_path / "none").fault
    assert "folder" in read_headline(tmp_path).fault
