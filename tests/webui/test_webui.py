"""A real AUTOMATIC1111 webui, with our extension and without it: the pictures, the infotext, training in the tab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

pytestmark = pytest.mark.webui
PROMPT = "a red circle on a blue background"


def mean_difference(a: Any, b: Any) -> float:
    return float(numpy.abs(a - b).mean())


def test_the_pictures_equal_the_built_ins(builtin: Any, our_shots: Any) -> None:
    for name in ("plain", "tagged", "parts", "again"):
        difference = numpy.abs(getattr(builtin, name) - getattr(our_shots, name)).max()
        print(f"largest difference, {name}: {difference} / 255")
        assert difference <= 1, name


def test_the_tag_is_seen_in_both(builtin: Any, our_shots: Any) -> None:
    for server in (builtin, our_shots):
        print(f"mean difference from untagged: {mean_difference(server.plain, server.tagged):.2f} / 255")
        assert mean_difference(server.plain, server.tagged) > 5
        assert mean_difference(server.plain, server.parts) > 1


def test_without_the_tag_the_picture_is_the_original_bit_for_bit(our_shots: Any) -> None:
    assert numpy.array_equal(our_shots.plain, our_shots.again)


def test_the_infotext_reports_layers_and_hash(builtin: Any, our_shots: Any) -> None:
    assert "LoRA layers: loud " in our_shots.infotext and "LoRA layers" not in builtin.infotext
    hashes = [text.partition("Lora hashes: ")[2].split('"')[1] for text in (builtin.infotext, our_shots.infotext)]
    assert hashes[0] == hashes[1] and hashes[0].startswith("loud: ")


def test_a_rewritten_file_is_used_at_once_text_encoder_included(ours: Any, our_shots: Any) -> None:
    text_only = f"{PROMPT} <lora:loud:1:0>"
    before, _ = ours.picture(text_only)
    path = ours.networks / "loud.safetensors"
    original = path.read_bytes()
    with safe_open(str(path), "pt") as file:
        changed = {name: file.get_tensor(name) * (-1 if "lora_up" in name else 1) for name in list(file.keys())}
    save_file(changed, str(path))
    after, _ = ours.picture(text_only)
    path.write_bytes(original)
    back, _ = ours.picture(text_only)
    assert mean_difference(before, after) > 0.5
    assert numpy.array_equal(before, back)


def test_a_name_without_a_file_leaves_the_picture_alone(ours: Any, our_shots: Any) -> None:
    picture, _ = ours.picture(f"{PROMPT} <lora:nosuchfile:1>")
    assert numpy.array_equal(picture, our_shots.plain)
    assert "'nosuchfile'" in ours.probe()["comments"][0]


def test_training_in_the_tab_gives_a_tag_that_works_at_once(ours: Any, our_shots: Any, tmp_path: Path) -> None:
    pixels = numpy.random.default_rng(0).integers(0, 255, (2, 128, 128, 3), dtype=numpy.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    settings = {"preset": "quick test", "data.folder": str(tmp_path), "data.trigger": "sks", "data.resolution": 128}
    settings |= {"output.name": "learned", "training.steps": 6, "optimizer.lr": 0.05, "optimizer.te_lr": 0.05}
    settings |= {"network.train_text_encoder": True, "output.sample_every": 6, "output.sample_steps": 2}
    status = ours.trained(settings)
    assert status["step"] == status["total"] == 6 and len(status["samples"]) == 1
    tagged, infotext = ours.picture(f"{PROMPT} {status['tag']}")
    assert mean_difference(tagged, our_shots.plain) > 0.5
    assert "learned 264 of 264" in infotext
    plain, _ = ours.picture(PROMPT)
    assert numpy.array_equal(plain, our_shots.plain), "training changed the base model"


def test_the_log_tells_of_no_exception(ours: Any, our_shots: Any) -> None:
    assert ours.faults() == []
