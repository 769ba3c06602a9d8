"""`generate` as a user calls it: files, settings inside them, tags, and one clear line on bad input."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib_lora.__main__ import main
from lib_lora.cli import generate
from lib_lora.errors import LoraError
from lib_lora.files.codec import read_network, write_network
from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.networks.base import LayerSpec
from lib_lora.networks.lora import Lora
from lib_lora.networks.network import Network


def call(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    generate.configure(parser)
    return generate.run(parser.parse_args(list(arguments)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one network, `cat`, that changes the picture a lot."""
    layers = {}
    for i in range(2):
        layer = Lora.init(LayerSpec((32, 32), 4, 4.0), torch.Generator().manual_seed(i))
        layer.up.data.normal_(generator=torch.Generator().manual_seed(9))
        layers[LayerKey(UNET, f"up_blocks.3.attentions.{i}.transformer_blocks.0.attn1.to_out.0")] = layer
    write_network(tmp_path / "networks" / "cat.safetensors", Network("cat", layers))
    return tmp_path / "networks"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=int)


def test_tags_seeds_infotext_and_report(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--checkpoint", str(tiny_checkpoint), "--networks", str(folder), "--steps", "2", "--size", "128x128"]
    plain, tagged, zero = (tmp_path / "new" / f"{name}.png" for name in ("plain", "tagged", "zero"))
    assert call([*common, "--prompt", "a cat", "--seed", "5", "--out", str(plain)]) == 0
    prompt = "a cat<lora:cat:0.8>"
    assert (
        call([*common, "--prompt", prompt, "--negative", "ugly", "--seed", "4", "--batch", "2", "--out", str(tagged)])
        == 0
    )
    out = capsys.readouterr().out
    assert "cat: 2 layers applied" in out and "tagged-2.png (seed 5)" in out
    assert call([*common, "--prompt", "a cat<lora:cat:0>", "--seed", "5", "--out", str(zero), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pictures"] == [{"file": str(zero), "seed": 5}] and told["networks"][0]["applied"] == 2
    assert np.array_equal(pixels(plain), pixels(zero))
    second = Image.open(tmp_path / "new" / "tagged-2.png")
    assert second.size == (128, 128)
    lines = second.info["parameters"].splitlines()
    assert lines[:2] == [prompt, "Negative prompt: ugly"]
    assert lines[2].startswith("Steps: 2, Sampler: DPM++ 2M, CFG scale: 7, Seed: 5, Size: 128x128, Model: tiny")
    assert call([*common, "--prompt", "a cat", "--negative", "ugly", "--seed", "5", "--out", str(plain)]) == 0
    assert np.abs(pixels(plain) - np.asarray(second, dtype=int)).mean() > 0.2, "the network changes the picture"
    assert {p.suffix for p in plain.parent.iterdir()} == {".png"}


def test_words_that_a_network_brings_along_are_read(tiny_checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    network = read_network(folder / "cat.safetensors")
    words = {"xulek": {"clip_l": torch.randn(2, 32, generator=torch.Generator().manual_seed(1))}}
    write_network(folder / "words.safetensors", replace(network, name="words", embeddings=words))
    common = ["--checkpoint", str(tiny_checkpoint), "--networks", str(folder), "--steps", "2", "--size", "64x64"]
    for name in ("cat", "words"):
        for prompt in ("a ball", "a xulek"):
            out = tmp_path / f"{name} {prompt}.png"
            assert call([*common, "--prompt", f"{prompt} <lora:{name}:1>", "--seed", "5", "--out", str(out)]) == 0
    assert np.array_equal(pixels(tmp_path / "cat a ball.png"), pixels(tmp_path / "words a ball.png"))
    assert not np.array_equal(pixels(tmp_path / "cat a xulek.png"), pixels(tmp_path / "words a xulek.png"))


def test_schedules_and_the_users_presets(tiny_checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    common = ["--checkpoint", str(tiny_checkpoint), "--networks", str(folder), "--steps", "3", "--size", "64x64"]
    (folder / "lbwpresets.txt").write_text("MINE:1,1,1,1,1,1,1,1,1,1,1,1,1,1,0,0,1\n")  # nothing where `cat` acts

    def draw(tag: str) -> np.ndarray:
        assert call([*common, "--prompt", f"a{tag}", "--out", str(tmp_path / "x.png"), "--json"]) == 0
        return pixels(tmp_path / "x.png")

    plain, full = draw(""), draw("<lora:cat:8>")
    assert np.array_equal(draw("<lora:cat:8:step=0-3>"), full)
    assert np.array_equal(draw("<lora:cat:8:unet=0@0,0@1>"), plain)
    assert np.array_equal(draw("<lora:cat:8:MINE>"), plain)
    first_step = draw("<lora:cat:8:stop=1>")
    assert np.abs(first_step - full).mean() > 0.1 and np.abs(first_step - plain).mean() > 0.1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--size", "100x128"], "multiples of 8; try 96x128"),
        (["--size", "big"], "512x512"),
        (["--networks", "/nowhere"], "is no folder"),
        (["--out", "x.jpg"], ".png"),
        (["--checkpoint", "/nowhere.safetensors"], "no checkpoint file"),
        (["--checkpoint", "x" * 300], "no checkpoint file"),
        (["--networks", "x" * 300], "is no folder"),
        (["--cfg", "nan"], "cfg nan"),
        (["--steps", "0"], "steps 0"),
        (["--sampler", "magic"], "choose one of"),
        (["--prompt", "a <lora:nobody:1>"], "nobody"),
        (["--prompt", "a <lora:cat:much>"], "much"),
    ],
)
def test_bad_input_is_one_clear_line(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    common = ["--prompt", "a", "--checkpoint", str(tiny_checkpoint), "--networks", str(folder), "--size", "128x128"]
    with pytest.raises(LoraError) as caught:
        call([*common, "--out", str(tmp_path / "o.png"), *arguments])
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "o.png").exists()


def test_the_place_must_be_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LoraError, match="give another --out"):
        generate.write_png(Image.new("RGB", (8, 8)), tmp_path / "file" / "x.png", "text")


def test_size_and_default_size() -> None:
    assert generate.parse_size("512X768") == (512, 768)
    assert generate._default_size(generate.default_checkpoint()) == (128, 128)
    assert generate._default_size(Path("other.safetensors")) == (512, 512)


@pytest.mark.parametrize(
    "arguments", [["generate"], ["generate", "--prompt", "a", "--steps", "many"], ["merge", "a", "b"], ["nothing"], []]
)
def test_bad_arguments_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    told = capsys.readouterr()
    assert caught.value.code == 2 and not told.out
    assert told.err.startswith("error: ") and len(told.err.splitlines()) == 1


def test_an_unknown_network_is_told_once(
    tiny_checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments = ["--checkpoint", str(tiny_checkpoint), "--networks", str(folder), "--out", str(tmp_path / "o.png")]
    assert main(["generate", "--prompt", "a <lora:nobody>", "--size", "64x64", *arguments]) == 2
    assert capsys.readouterr().err.count("nobody") == 1 and "nobody" not in caplog.text
