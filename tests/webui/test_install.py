"""Installed from a repository's address, disabled and deleted again: the webui and its built-in stay intact."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy
import pytest

pytestmark = pytest.mark.webui
ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a red circle on a blue background"
NAME = "sd-webui-lorakit"


@pytest.fixture
def address(tmp_path: Path) -> str:
    """A bare repository of what lies here, committed or not."""
    snapshot, bare = tmp_path / "snapshot", tmp_path / f"{NAME}.git"
    found = _git(ROOT, "ls-files", "-co", "--exclude-standard", "-z")
    for name in filter(None, found.split("\0")):
        if (ROOT / name).is_file():
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, snapshot / name)
    _git(snapshot, "init", "-q", "-b", "main")
    _git(snapshot, "add", "-A")
    _git(snapshot, "commit", "-qm", "snapshot")
    _git(tmp_path, "clone", "-q", "--bare", str(snapshot), str(bare))
    return str(bare)


def _git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    hooks = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, env={**os.environ, **hooks}, check=True, capture_output=True, text=True
    )
    return done.stdout


def test_installed_disabled_and_deleted(start: Any, builtin: Any, setup_class: Any, address: str) -> None:
    with start(setup_class(ours=None, arguments=["--enable-insecure-extension-access"])) as server:
        _is_the_built_ins(server, builtin)
        assert "Installed into" in server.post("/probe/install", {"url": address})["answer"]
        server.reload()
        _is_ours(server, builtin)
        server.options(disabled_extensions=[NAME])
        server.reload()
        _is_the_built_ins(server, builtin)
        server.options(disabled_extensions=["Lora"])
        server.reload()
        _is_ours(server, builtin)
        server.options(disabled_extensions=[])
        server.reload()
        _is_ours(server, builtin)
        shutil.rmtree(server.data / "extensions" / NAME)
        server.reload()
        _is_the_built_ins(server, builtin)
        assert server.faults() == []


def _is_ours(server: Any, builtin: Any) -> None:
    tagged, text = server.picture(f"{PROMPT} <lora:loud:1>")
    seen = server.probe()
    assert seen["owner"] == seen["alias"] == "LoraTag" and seen["bare"] and "LoRA layers" in text
    assert numpy.abs(tagged - builtin.tagged).max() <= 1
    assert numpy.array_equal(server.picture(PROMPT)[0], builtin.plain)


def _is_the_built_ins(server: Any, builtin: Any) -> None:
    tagged, text = server.picture(f"{PROMPT} <lora:loud:1>")
    seen = server.probe()
    assert seen["owner"] == seen["alias"] == "ExtraNetworkLora" and not seen["bare"] and "LoRA layers" not in text
    assert numpy.array_equal(tagged, builtin.tagged)
    assert numpy.array_equal(server.picture(PROMPT)[0], builtin.plain)
