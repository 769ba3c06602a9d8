"""Extensions with a syntax of their own for the tag."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lib_lora.host.neighbours import LORACTL, Neighbours
from lib_lora.prompt import parse_arguments

OWN = ",".join(["0.25"] * 17)


def _script(name: str, module: str, **fields: Any) -> Any:
    return type(name, (), {"__module__": module, **fields})()


def test_loractl_is_replaced_and_knows_whom_to_give_back_to(
    webui: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    neighbours = Neighbours(webui)
    assert neighbours.owners() == ()
    module: Any = ModuleType(LORACTL)
    module.LoraCtlNetwork = type("LoraCtlNetwork", (), {})
    monkeypatch.setitem(sys.modules, LORACTL, module)
    assert neighbours.owners() == (module.LoraCtlNetwork,)
    script, ours = _script("LoraCtlScript", "loractl.py", original_network=None), object()
    webui.scripts.scripts_txt2img.alwayson_scripts = [script]
    for _ in range(3):
        neighbours.settle(ours)
    assert script.original_network is ours and webui.extra_networks.extra_network_aliases["loractl"] is ours
    assert caplog.text.count("sd-webui-loractl") == 1
    script.original_network = other = object()
    neighbours.settle(ours)
    assert script.original_network is other


def test_presets_come_from_block_weights_file_its_tab_and_our_folder(webui: Any, tmp_path: Path) -> None:
    theirs, own = tmp_path / "lbw" / "scripts", tmp_path / "lorakit"
    theirs.mkdir(parents=True)
    own.mkdir()
    (theirs / "lbwpresets.txt").write_text(f"FILE:{OWN}\nBOTH:{','.join(['1'] * 17)}\nnonsense\n")
    (own / "lbwpresets.txt").write_text(f"BOTH:{OWN}\n")
    webui.extensions.extensions = [SimpleNamespace(path=str(tmp_path / "lbw")), SimpleNamespace(path=str(tmp_path))]
    neighbours = Neighbours(webui)
    weights = neighbours.presets().weights
    assert weights["FILE"] == weights["BOTH"] == OWN and "MIDD" in weights
    tab = {"lratios": {"XYZ": f" {OWN}"}, "elementals": {"MINE": "IN05:attn:0.5", "bad": "x"}}
    webui.scripts.scripts_img2img.alwayson_scripts = [_script("Script", "lora_block_weight.py", **tab)]
    found = neighbours.presets()
    assert parse_arguments(["a", "1", "lbw=XYZ"], found).blocks == parse_arguments(["a", "1", f"lbw={OWN}"]).blocks
    assert "MINE" in found.elements and "bad" not in found.elements


def test_a_preset_file_that_cannot_be_read_leaves_the_usual_ones(
    webui: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lorakit").mkdir()
    (tmp_path / "lorakit" / "lbwpresets.txt").write_bytes(b"\xff\xfe\xff")
    assert "MIDD" in Neighbours(webui).presets().weights
    assert "lbwpresets.txt" in caplog.text


def test_regional_prompter_needs_the_built_in_in_latent_mode_only(webui: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    neighbours = Neighbours(webui)
    assert neighbours.needs_builtin() == ""
    latent = SimpleNamespace(lactive=False)
    monkeypatch.setitem(sys.modules, "scripts.latent", latent)
    assert neighbours.needs_builtin() == ""
    latent.lactive = True
    assert "Regional Prompter" in neighbours.needs_builtin()
