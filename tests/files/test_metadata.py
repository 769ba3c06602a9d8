"""The metadata record against its definition."""

from __future__ import annotations

import json

from lib_lora.files.metadata import TrainingRecord, build_metadata


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
