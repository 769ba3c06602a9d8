"""A real AUTOMATIC1111 webui, with our extension and without it.

`LORAKIT_WEBUI` is the webui's folder, `LORAKIT_WEBUI_PYTHON` its Python. `LORAKIT_WEBUI_CHECKPOINT` is an SD1
checkpoint to use in place of the shipped miniature; a .yaml beside it is used as well.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from lib_lora.keys.checkpoint import checkpoint_layer_map, default_targets
from lib_lora.miniature import place

pytestmark = pytest.mark.webui
ROOT = Path(__file__).resolve().parents[2]
PREFIXES = {"unet": "lora_unet_", "te1": "lora_te_"}
PROMPT = "a red circle on a blue background"
TAGGED = f"{PROMPT} <lora:loud:1>"


@dataclass(frozen=True)
class Shots:
    """Pictures of one server: plain, tagged, with strengths per part, plain again."""

    plain: Any
    tagged: Any
    parts: Any
    again: Any
    infotext: str


@pytest.fixture(scope="module")
def start(serving: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`start(ours)`: a context manager that serves the webui with our extension enabled or disabled."""
    webui = os.environ.get("LORAKIT_WEBUI")
    if not webui:
        pytest.skip("LORAKIT_WEBUI is not set: give the folder of an AUTOMATIC1111 webui 1.10.1")
    given = os.environ.get("LORAKIT_WEBUI_CHECKPOINT")
    if not given and not place.checkpoint_path().is_file():
        pytest.skip("there is no shipped miniature; set LORAKIT_WEBUI_CHECKPOINT to an SD1 checkpoint")

    def begin(ours: bool) -> Any:
        data = tmp_path_factory.mktemp("ours" if ours else "builtin")
        folder = data / "models" / "Stable-diffusion"
        folder.mkdir(parents=True)
        checkpoint = Path(given) if given else place.export(folder)
        (data / "extensions").mkdir()
        (data / "extensions" / ROOT.name).symlink_to(ROOT)
        off = [] if ours else [ROOT.name]
        (data / "config.json").write_text(json.dumps({"disabled_extensions": off}), encoding="utf-8")
        loud_network(checkpoint, data / "models" / "Lora" / "loud.safetensors")
        return serving(Path(webui), os.environ.get("LORAKIT_WEBUI_PYTHON", sys.executable), data, checkpoint)

    return begin


@pytest.fixture(scope="module")
def builtin(start: Any) -> Shots:
    """The built-in's pictures."""
    with start(False) as server:
        return shots(server)


@pytest.fixture(scope="module")
def ours(start: Any, builtin: Shots) -> Iterator[Any]:
    """The webui with our extension; the other one has ended before."""
    with start(True) as server:
        yield server


@pytest.fixture(scope="module")
def our_shots(ours: Any) -> Shots:
    return shots(ours)


def loud_network(checkpoint: Path, path: Path) -> None:
    """A kohya LoRA file of random factors on all default targets, strong enough to be seen."""
    generator, tensors = torch.Generator().manual_seed(1), {}
    with safe_open(str(checkpoint), "pt") as file:
        for name, key in checkpoint_layer_map(file.keys()).items():
            if key.part not in PREFIXES or key.path not in default_targets(key.part):
                continue
            weight = file.get_tensor(name).float()
            down = torch.randn(4, *weight.shape[1:], generator=generator)
            up = torch.randn(weight.shape[0], 4, *[1] * (weight.dim() - 2), generator=generator)
            stem = PREFIXES[key.part] + key.flat
            tensors[f"{stem}.lora_down.weight"] = down
            tensors[f"{stem}.lora_up.weight"] = up * weight.std() * 0.2
            tensors[f"{stem}.alpha"] = torch.tensor(4.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path))


def shots(server: Any) -> Shots:
    plain, _ = server.picture(PROMPT)
    tagged, infotext = server.picture(TAGGED)
    parts, _ = server.picture(f"{PROMPT} <lora:loud:0.7:-0.4>")
    again, _ = server.picture(PROMPT)
    return Shots(plain, tagged, parts, again, infotext)


def mean_difference(a: Any, b: Any) -> float:
    return float(numpy.abs(a - b).mean())


def test_the_pictures_equal_the_built_ins(builtin: Shots, our_shots: Shots) -> None:
    for name in ("plain", "tagged", "parts", "again"):
        difference = numpy.abs(getattr(builtin, name) - getattr(our_shots, name)).max()
        print(f"largest difference, {name}: {difference} / 255")
        assert difference <= 1, name


def test_the_tag_is_seen_in_both(builtin: Shots, our_shots: Shots) -> None:
    for server in (builtin, our_shots):
        print(f"mean difference from untagged: {mean_difference(server.plain, server.tagged):.2f} / 255")
        assert mean_difference(server.plain, server.tagged) > 5
        assert mean_difference(server.plain, server.parts) > 1


def test_without_the_tag_the_picture_is_the_original_bit_for_bit(our_shots: Shots) -> None:
    assert numpy.array_equal(our_shots.plain, our_shots.again)


def test_the_infotext_reports_layers_and_hash(builtin: Shots, our_shots: Shots) -> None:
    assert "LoRA layers: loud " in our_shots.infotext and "LoRA layers" not in builtin.infotext
    hashes = [text.partition("Lora hashes: ")[2].split('"')[1] for text in (builtin.infotext, our_shots.infotext)]
    assert hashes[0] == hashes[1] and hashes[0].startswith("loud: ")


def test_a_rewritten_file_is_used_at_once_text_encoder_included(ours: Any, our_shots: Shots) -> None:
    text_only = f"{PROMPT} <lora:loud:1:0>"
    before, _ = ours.picture(text_only)
    path = ours.data / "models" / "Lora" / "loud.safetensors"
    original = path.read_bytes()
    with safe_open(str(path), "pt") as file:
        changed = {name: file.get_tensor(name) * (-1 if "lora_up" in name else 1) for name in list(file.keys())}
    save_file(changed, str(path))
    after, _ = ours.picture(text_only)
    path.write_bytes(original)
    back, _ = ours.picture(text_only)
    assert mean_difference(before, after) > 0.5
    assert numpy.array_equal(before, back)


def test_a_name_without_a_file_leaves_the_picture_alone(ours: Any, our_shots: Shots) -> None:
    picture, _ = ours.picture(f"{PROMPT} <lora:nosuchfile:1>")
    assert numpy.array_equal(picture, our_shots.plain)


def test_training_in_the_tab_gives_a_tag_that_works_at_once(ours: Any, our_shots: Shots, tmp_path: Path) -> None:
    pixels = numpy.random.default_rng(0).integers(0, 255, (2, 128, 128, 3), dtype=numpy.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    settings = {"preset": "quick test", "data.folder": str(tmp_path), "data.trigger": "sks", "data.resolution": 128}
    settings |= {"output.name": "learned", "training.steps": 6, "optimizer.lr": 0.05, "optimizer.te_lr": 0.05}
    settings |= {"network.train_text_encoder": True, "output.sample_every": 6, "output.sample_steps": 2}
    answer = ours.call("lorakit_train", json.dumps(settings))
    assert answer["ok"], answer
    status: dict[str, Any] = {"state": "running"}
    deadline = time.monotonic() + 240
    while status["state"] == "running" and time.monotonic() < deadline:
        time.sleep(1)
        status = ours.call("lorakit_status")
    assert status["state"] == "finished", f"{status}\n{ours.tail()}"
    assert status["step"] == status["total"] == 6 and len(status["samples"]) == 1
    tagged, infotext = ours.picture(f"{PROMPT} {status['tag']}")
    assert mean_difference(tagged, our_shots.plain) > 0.5
    assert "learned 264 of 264" in infotext
    plain, _ = ours.picture(PROMPT)
    assert numpy.array_equal(plain, our_shots.plain), "training changed the base model"
