"""The standalone page on a real port with a tiny model: trained, listed, applied and refused over HTTP."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_lora.errors import BadConfig
from lib_lora.files.codec import write_network
from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.networks.base import LayerSpec
from lib_lora.networks.lora import Lora
from lib_lora.networks.network import Network
from lib_lora.standalone.server import ADDRESS, Standalone, serve
from lib_lora.ui.generate_tab import Picture

ASKED = Picture(prompt="a red circle", negative="", seed=5, steps=2, cfg=4.0, size=64, batch=1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, colour in enumerate([(200, 30, 30), (30, 200, 30)]):
        Image.new("RGB", (64, 64), colour).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def served(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Standalone, str, int]]:
    folder, port = tmp_path_factory.mktemp("standalone"), free_port()
    program, page = serve(port, tiny_checkpoint, folder / "networks", folder / "runs", block=False)
    yield program, f"http://{ADDRESS}:{port}", port
    page.close()


def client(address: str) -> Any:
    """gradio's own client, which knows where this version keeps its endpoints."""
    from gradio_client import Client

    return Client(address)


def test_train_then_generate(served: tuple[Standalone, str, int], pictures: Path) -> None:
    program, address, _ = served
    settings = {
        "preset": "quick test",
        "data.folder": str(pictures),
        "data.trigger": "sks",
        "data.class_word": "circle",
        "data.resolution": 128,
        "output.name": "tiny one",
        "output.sample_every": 2,
        "output.sample_steps": 2,
        "optimizer.lr": 1e-2,
        "training.steps": 3,
    }
    plain = program.generate(ASKED).pictures[0].tobytes()
    program.jobs.submit(settings)
    program.jobs.queue.wait(120)
    status = program.jobs.status()
    assert (status.state, status.step, status.total) == ("finished", 3, 3)
    assert (status.tag, status.words) == ("<lora:tiny one:1>", "sks circle")
    assert status.result is not None and status.result.parent == program.folder and status.result.is_file()
    assert len(status.samples) == 1 and status.samples[0].path.is_file()
    assert program.networks() == ["tiny one"]

    http = client(address)
    numbers = (ASKED.seed, ASKED.steps, ASKED.cfg, ASKED.size, ASKED.batch)
    tagged = "a red circle <lora:tiny one:1>"
    _, report = http.predict(tagged, "", *numbers, api_name="/lorakit_generate")
    assert re.search("tiny one: (192|264) layers applied", re.sub("<[^>]*>", "", report))
    with_network = program.generate(Picture(tagged, *list(vars(ASKED).values())[1:]))
    assert with_network.complete and with_network.pictures[0].tobytes() != plain
    assert program.generate(ASKED).pictures[0].tobytes() == plain


def test_words_that_a_network_brings_along_are_read(served: tuple[Standalone, str, int], tmp_path: Path) -> None:
    program, _, _ = served
    key = LayerKey(UNET, "up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_out.0")
    layers = {key: Lora.init(LayerSpec((32, 32), 4, 4.0), torch.Generator().manual_seed(0))}  # of no effect
    words = {"xulek": {"clip_l": torch.randn(2, 32, generator=torch.Generator().manual_seed(1))}}
    for name, brought in (("plain", {}), ("words", words)):
        write_network(program.folder / f"{name}.safetensors", Network(name, layers, embeddings=brought))
    pictures = {
        (name, prompt): program.generate(replace(ASKED, prompt=f"{prompt} <lora:{name}:1>")).pictures[0].tobytes()
        for name in ("plain", "words")
        for prompt in ("a ball", "a xulek")
    }
    assert pictures["plain", "a ball"] == pictures["words", "a ball"]
    assert pictures["plain", "a xulek"] != pictures["words", "a xulek"]
    again = program.generate(replace(ASKED, prompt="a xulek <lora:plain:1>")).pictures[0].tobytes()
    assert again == pictures["plain", "a xulek"], "the word is gone with its network"


def test_a_name_without_a_file_is_told_over_http(served: tuple[Standalone, str, int]) -> None:
    _, report = client(served[1]).predict("a <lora:missing:1>", "", 0, 1, 4, 64, 1, api_name="/lorakit_generate")
    assert "no network" in report and "lk-bad" in report


def test_page_works_without_fonts_from_elsewhere(served: tuple[Standalone, str, int]) -> None:
    _, address, _ = served
    with urllib.request.urlopen(address, timeout=20) as reply:
        text = reply.read().decode()
    assert "lorakit_folder" in text
    assert "fonts.googleapis.com/css2?family=Source" not in text


def test_only_this_machine_is_served(served: tuple[Standalone, str, int]) -> None:
    _, _, port = served
    with socket.socket() as probe:
        probe.settimeout(3)
        assert probe.connect_ex(("127.0.0.2", port)) != 0


def test_taken_port_is_told(served: tuple[Standalone, str, int], tiny_checkpoint: Path, tmp_path: Path) -> None:
    _, _, port = served
    with pytest.raises(BadConfig, match=f"port {port}"):
        serve(port, tiny_checkpoint, tmp_path / "n", tmp_path / "r", block=False)


def test_a_file_in_place_of_the_networks_folder_is_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "n").write_text("")
    with pytest.raises(BadConfig, match="--networks"):
        Standalone(tiny_checkpoint, tmp_path / "n", tmp_path / "r")
