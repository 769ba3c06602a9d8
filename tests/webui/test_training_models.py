"""Training in a real webui on small SD1, SD2 (v) and SDXL checkpoints: what is left behind, and what was learned.

`LORAKIT_WEBUI_MODELS` are checkpoints divided as in PATH, each with a .yaml beside it and small enough for a CPU, of
any of the three kinds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from safetensors import safe_open

pytestmark = pytest.mark.webui
MODELS = [Path(text) for text in os.environ.get("LORAKIT_WEBUI_MODELS", "").split(os.pathsep) if text]
PROMPT = "a red circle on a blue background"
SIDE = 64
SIZE = {"width": SIDE, "height": SIDE, "steps": 4}
PARTS = {"lora_te": "train_text_encoder", "lora_te1": "train_text_encoder", "lora_te2": "train_text_encoder_2"}


@pytest.fixture(scope="module")
def server(start: Any, setup_class: Any) -> Iterator[Any]:
    if not MODELS:
        pytest.skip("LORAKIT_WEBUI_MODELS is not set: give small checkpoints of SD1, SD2 and SDXL")
    with start(setup_class()) as running:
        for path in MODELS:
            for found in (path, path.with_suffix(".yaml")):
                shutil.copy(found, running.data / "models" / "Stable-diffusion")
        running.post("/sdapi/v1/refresh-checkpoints", {})
        yield running


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    pixels = numpy.random.default_rng(0).integers(0, 255, (2, SIDE, SIDE, 3), dtype=numpy.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


def choose(server: Any, path: Path) -> None:
    titles = [model["title"] for model in server.get("/sdapi/v1/sd-models")]
    server.options(sd_model_checkpoint=next(title for title in titles if title.startswith(path.stem)))


def trained(server: Any, name: str, pictures: Path, **more: Any) -> dict[str, Any]:
    """The finished run's status."""
    settings = {"preset": "quick test", "data.folder": str(pictures), "data.trigger": "sks", "data.resolution": SIDE}
    settings |= {"output.name": name, "training.steps": 4, "optimizer.lr": 0.02, "optimizer.te_lr": 0.02, **more}
    return server.trained(settings)


def prefixes(path: Path) -> set[str]:
    with safe_open(str(path), "pt") as file:
        return {name.partition(".")[0].split("_text_model")[0].split("_unet")[0] for name in file.keys()}  # noqa: SIM118


def gap(a: Any, b: Any) -> float:
    return float(numpy.abs(a - b).mean())


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("parts", ["unet", "all"])
def test_a_network_is_trained_and_nothing_else_changes(server: Any, pictures: Path, path: Path, parts: str) -> None:
    choose(server, path)
    weights = server.probe()["weights"]
    before, _ = server.picture(PROMPT, **SIZE)
    name = f"{path.stem}-{parts}"
    text = parts == "all"
    second = {"network.train_text_encoder_2": text} if "xl" in path.stem else {}
    more = {"network.train_text_encoder": text, **second, "training.checkpointing": text}
    status = trained(server, name, pictures, **more, **{"output.sample_every": 4, "output.sample_steps": 2})
    assert status["step"] == 4 and len(status["samples"]) == 1
    assert server.probe()["weights"] == weights, "training changed the base model"
    after, _ = server.picture(PROMPT, **SIZE)
    assert numpy.array_equal(before, after)
    tagged, infotext = server.picture(f"{PROMPT} {status['tag']}", **SIZE)
    print(f"{name}: mean difference from untagged {gap(tagged, before):.2f} / 255")
    assert gap(tagged, before) > 0.5
    expected = {"lora"} if not text else {"lora", *({"lora_te1", "lora_te2"} if second else {"lora_te"})}
    assert {name.replace("lora_unet", "lora") for name in prefixes(server.networks / f"{name}.safetensors")} == expected
    applied, total = infotext.split(f"{name} ")[1].split(" of ")[0], infotext.split(" of ")[1].split()[0].strip('",')
    assert applied == total and int(total) > 100
    server.options(lorakit_apply=False)
    try:
        theirs, _ = server.picture(f"{PROMPT} {status['tag']}", **SIZE)
    finally:
        server.options(lorakit_apply=True)
    difference = numpy.abs(theirs - tagged).max()
    print(f"{name}: largest difference from the built-in {difference} / 255")
    assert difference <= 1
    again, _ = server.picture(PROMPT, **SIZE)
    assert numpy.array_equal(before, again)


def test_the_log_tells_of_no_exception(server: Any) -> None:
    assert server.faults() == []
