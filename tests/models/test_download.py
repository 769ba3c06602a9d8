"""Downloads: what is asked of the hub, and what is said when it does not answer."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from lib_lora.errors import BadConfig, BadFile
from lib_lora.models.download import IGNORED, PATTERNS, download_base


@pytest.mark.parametrize("name", ["sd15", "", "a//b", "a/../b", "/x"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(BadConfig, match="no name on the hub"):
        download_base(name)


def test_without_a_network_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("nobody/no-such-model", "nobody/no-such-model/x.safetensors"):
        with pytest.raises(BadFile, match="nobody/no-such-model.* was not downloaded: .*check the name, the network"):
            download_base(name)


def test_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked.append((a, k)) or "/folder")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: asked.append((a, k)) or "/file")
    assert download_base("a/b", token="t", revision="main") == Path("/folder")
    assert download_base("a/b/c/d.safetensors") == Path("/file")
    (repo, given), (file, _) = asked
    assert (
        repo == ("a/b",)
        and given["token"] == "t"
        and given["revision"] == "main"
        and file == ("a/b", "c/d.safetensors")
    )
    wanted = ("model_index.json", "unet/config.json", "vae/diffusion_pytorch_model.safetensors")
    wanted += ("text_encoder_2/model.safetensors", "tokenizer/vocab.json", "tokenizer_2/merges.txt")
    unwanted = ("v1-5-pruned.ckpt", "unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors", "x.py")

    def taken(name: str) -> bool:
        hit = any(fnmatch(name, pattern) for pattern in PATTERNS)
        return hit and not any(fnmatch(name, pattern) for pattern in IGNORED)

    assert all(map(taken, wanted)) and not any(map(taken, unwanted))
    assert not taken("unet/diffusion_pytorch_model.non_ema.safetensors")
