"""The metadata record and the hashes, each against its definition."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from lib_lora.files.metadata import TrainingRecord, add_hashes, addnet_hash, build_metadata, file_hash
from lib_lora.files.tensors import write_tensors


def test_the_record_is_all_text_and_says_what_the_webui_reads() -> None:
    record = TrainingRecord(
        "toy", 8, 4.0, network_args={"conv_dim": 4}, tag_frequency={"10_toy": {"red": 3}}, training_finished_at=0.0
    )
    data = build_metadata(record)
    assert all(isinstance(k, str) and isinstance(v, str) and v for k, v in data.items())
    assert data["ss_base_model_version"] == "sd_v1"
    assert (data["ss_network_dim"], data["ss_network_alpha"], data["ss_v2"]) == ("8", "4.0", "False")
    assert json.loads(data["ss_tag_frequency"]) == {"10_toy": {"red": 3}}
    assert json.loads(data["ss_network_args"]) == {"conv_dim": 4}
    assert data["ss_resolution"] == "(512, 512)"
    assert data["modelspec.sai_model_spec"] == "1.0.1"
    assert data["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert data["modelspec.date"] == "1970-01-01T00:00:00+00:00"
    assert "ss_min_snr_gamma" not in data
    assert list(data) == sorted(data)


def test_base_versions() -> None:
    def version(base: str, v: bool) -> tuple[str, str]:
        data = build_metadata(TrainingRecord("x", 1, 1.0, base_version=base, v_prediction=v))
        return data["ss_base_model_version"], data["ss_v2"]

    assert version("sd2", True) == ("sd_v2_v", "True")
    assert version("sd2", False) == ("sd_v2", "True")
    assert version("sdxl", False) == ("sdxl_base_v1-0", "False")


def test_hashes_follow_their_definitions(tmp_path: Path) -> None:
    tensors = {f"layer{i}": torch.randn(300, 500) for i in range(3)}  # > 1 MiB, so that the legacy window has data
    metadata = {"ss_seed": "1", "modelspec.title": "x"}
    hashed = add_hashes(metadata, tensors)
    path, bare = tmp_path / "x.safetensors", tmp_path / "bare.safetensors"
    write_tensors(path, tensors, hashed)
    write_tensors(bare, tensors, {"ss_seed": "1"})
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert hashed["sshs_model_hash"] == hashlib.sha256(content[start:]).hexdigest() == addnet_hash(path)
    window = bare.read_bytes()[0x100000 : 0x100000 + 0x10000]
    assert len(window) == 0x10000
    assert hashed["sshs_legacy_hash"] == hashlib.sha256(window).hexdigest()[:8]
    assert file_hash(path) == hashlib.sha256(content).hexdigest()
    assert hashed.items() >= metadata.items()


def test_a_small_files_legacy_window_is_empty() -> None:
    hashed = add_hashes({}, {"a": torch.ones(3)})
    assert hashed["sshs_legacy_hash"] == hashlib.sha256(b"").hexdigest()[:8]
