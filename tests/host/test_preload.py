"""Command line options, where nobody else brings them."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PRELOAD = Path(__file__).resolve().parents[2] / "preload.py"


@pytest.fixture
def preload(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    modules: Any = ModuleType("modules")
    modules.paths_internal = paths = ModuleType("modules.paths_internal")
    paths.extensions_builtin_dir = str(tmp_path / "extensions-builtin")  # type: ignore[attr-defined]
    paths.models_path = str(tmp_path / "models")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modules", modules)
    monkeypatch.setitem(sys.modules, "modules.paths_internal", paths)
    return runpy.run_path(str(PRELOAD))["preload"]


@pytest.mark.parametrize("name", ["Lora", "sd_forge_lora"])
def test_the_built_ins_own_hook_runs_even_where_it_is_disabled(preload: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "extensions-builtin" / name).mkdir(parents=True)
    (tmp_path / "extensions-builtin" / name / "preload.py").touch()
    parser = argparse.ArgumentParser()
    preload(parser)
    assert not hasattr(parser.parse_args([]), "lora_dir")


def test_deleted_its_options_come_from_us(preload: Any, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    preload(parser)
    found = parser.parse_args(["--lora-dir", "here"])
    assert found.lora_dir == str(Path("here").absolute())
    assert found.lyco_dir_backcompat == str(tmp_path / "models" / "LyCORIS")


def test_a_second_copy_of_us_or_another_extension_may_have_been_first(preload: Any) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lora-dir", default="theirs")
    preload(parser)
    preload(parser)
    assert parser.parse_args([]).lora_dir == "theirs"
