"""A second checkpoint that takes over in mid-picture: loaded for it, or in memory already."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.webui
PROMPT = "a red circle on a blue background"
TAGS = ("<lora:loud:1>", "<lora:loud:1:0>", "<lora:loud:0:1>", "")


@pytest.fixture(scope="module")
def server(start: Any, builtin: Any, setup_class: Any) -> Iterator[Any]:
    """Ours, with a second checkpoint `second`: the first one's weights, changed by a few per cent."""
    with start(setup_class()) as running:
        folder = running.data / "models" / "Stable-diffusion"
        given = os.environ.get("LORAKIT_WEBUI_CHECKPOINT")
        first = Path(given) if given else next(folder.glob("*.safetensors"))
        random, tensors = torch.Generator().manual_seed(0), load_file(str(first))
        for name, tensor in tensors.items():
            if name.startswith(("model.", "cond_stage_model.")) and name.endswith("weight") and tensor.ndim > 1:
                change = 1 + 0.03 * torch.randn(tensor.shape, generator=random)
                tensors[name] = (tensor.float() * change).to(tensor.dtype)
        save_file(tensors, str(folder / "second.safetensors"))
        if first.with_suffix(".yaml").is_file():
            shutil.copy(first.with_suffix(".yaml"), folder / "second.yaml")
        running.post("/sdapi/v1/refresh-checkpoints", {})
        yield running


def pictures(server: Any, in_memory: bool) -> dict[str, Any]:
    """One picture for each of TAGS, whose refiner is loaded for it, or stays in memory from then on.

    The other way round fails before 1.9: going back from two checkpoints in memory to one, the webui forgets the one it
    keeps and keeps the one it emptied.
    """
    titles = [model["title"] for model in server.get("/sdapi/v1/sd-models")]
    (second,) = [title for title in titles if "second" in title]
    server.options(sd_checkpoints_limit=2 if in_memory else 1)
    server.options(sd_model_checkpoint=next(title for title in titles if title != second))
    refiner = {"refiner_checkpoint": second, "refiner_switch_at": 0.5}
    if in_memory:
        server.picture(PROMPT, **refiner)
    return {tag: server.picture(f"{PROMPT} {tag}", **refiner)[0] for tag in TAGS}


def test_the_refiner_has_the_networks_too(server: Any) -> None:
    loaded, ready = pictures(server, in_memory=False), pictures(server, in_memory=True)
    server.options(lorakit_apply=False)
    try:
        builtin = pictures(server, in_memory=True)  # where it loads the refiner it loses the networks
    finally:
        server.options(lorakit_apply=True)
    for tag in TAGS:
        difference = numpy.abs(ready[tag] - builtin[tag]).max()
        print(f"{tag or 'untagged'}: largest difference from the built-in {difference} / 255")
        assert numpy.array_equal(loaded[tag], ready[tag]), tag
        assert difference <= 2, tag
        assert bool((ready[tag] != ready[""]).any()) == bool(tag)
    assert server.faults() == []
