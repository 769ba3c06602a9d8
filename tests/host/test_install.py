"""The install hook."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

INSTALL = Path(__file__).resolve().parents[2] / "install.py"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Records what pip is asked for, with the constraints file's text."""
    calls: list[tuple[str, str]] = []

    def run_pip(command: str, _what: str) -> None:
        calls.append((command, Path(command.split('-c "')[1].rstrip('"')).read_text(encoding="utf-8")))

    monkeypatch.setitem(sys.modules, "launch", SimpleNamespace(run_pip=run_pip))
    return calls


def _versions(monkeypatch: pytest.MonkeyPatch, found: dict[str, str]) -> None:
    import importlib.metadata as metadata

    def version(name: str) -> str:
        if name not in found:
            raise metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(metadata, "version", version)


def test_nothing_is_done_when_all_is_there(monkeypatch: pytest.MonkeyPatch, pip: list[Any]) -> None:
    _versions(monkeypatch, {"diffusers": "0.35.2", "accelerate": "0.21.0"})
    runpy.run_path(str(INSTALL), run_name="__main__")
    assert pip == []


def test_only_what_is_missing_is_installed_and_pins_are_kept(monkeypatch: pytest.MonkeyPatch, pip: list[Any]) -> None:
    _versions(monkeypatch, {"accelerate": "0.21.0", "torch": "2.1.2+cu121"})
    runpy.run_path(str(INSTALL), run_name="__main__")
    ((command, constraints),) = pip
    assert '"diffusers==0.30.3"' in command and '"accelerate' not in command
    assert constraints.splitlines() == ["torch==2.1.2+cu121", "accelerate==0.21.0", "huggingface-hub<1.0"]


def test_a_failure_is_told_and_does_not_stop_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_pip(_command: str, _what: str) -> None:
        raise RuntimeError("no network")

    monkeypatch.setitem(sys.modules, "launch", SimpleNamespace(run_pip=run_pip))
    _versions(monkeypatch, {"accelerate": "0.21.0"})
    runpy.run_path(str(INSTALL), run_name="__main__")
    told = capsys.readouterr().out
    assert "no network" in told and "pip install diffusers==0.30.3" in told and "Applying networks works" in told
