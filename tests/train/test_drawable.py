"""What pictures can be drawn with of the files of every kind of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lib_lora.errors import BadConfig, BadFile
from lib_lora.train.config import JobConfig, make_job
from lib_lora.train.drawable import Drawable, drawable, prompted, read_embedding, require_said, why_not_drawn
from lib_lora.train.methods.registry import method_of
from lib_lora.train.sections import METHODS
from lib_lora.train.tokens import write_embedding

FACTS = {"name": "rex", "step": 3, "sd_checkpoint": None, "sd_checkpoint_name": "base"}


def job(**settings: Any) -> JobConfig:
    values = {"output.name": "rex", "data.trigger": "<sks>", "data.class_word": "dog"}
    return make_job({**values, **{name.replace("__", "."): value for name, value in settings.items()}})


def files(made: JobConfig, folder: Path) -> list[Path]:
    """What the job makes, as empty files."""
    products = method_of(made.method.name).products(made, "rex-000100")
    paths = [folder / product.name for product in products]
    for path in paths:
        path.touch()
    return paths


def test_a_lora_beside_a_checkpoint_is_what_a_prompt_uses(tmp_path: Path) -> None:
    made = job(method__name="dreambooth", method__as_lora=8)
    assert prompted(made) == 1 and why_not_drawn(made) == ""
    checkpoint, lora = files(made, tmp_path)
    assert drawable(made, [checkpoint, lora]) == Drawable(lora)
    checkpoint.unlink()
    assert drawable(made, [checkpoint, lora]) == Drawable(lora)
    lora.unlink()
    assert drawable(made, [checkpoint, lora]) is None


def test_embeddings_are_read_as_captions_and_webui_call_them(tmp_path: Path) -> None:
    made = job(method__name="textual_inversion")
    (path,) = files(made, tmp_path)
    assert drawable(made, [path]) == Drawable(None, {"<sks>": path, "rex": path})
    concepts = [{"folder": "a", "trigger": "<cat>"}, {"folder": "b", "trigger": "<dog>"}]
    both = job(method__name="textual_inversion", concept=concepts)
    first, second = files(both, tmp_path)
    words = {"<cat>": first, "cat": first, "<dog>": second, "dog": second}
    assert drawable(both, [first, second]) == Drawable(None, words)
    second.unlink()
    assert drawable(both, [first, second]) is None


def test_words_are_drawn_with_their_network(tmp_path: Path) -> None:
    made = job(method__name="pivotal_tuning")
    network, word = files(made, tmp_path)
    assert drawable(made, [network, word]) == Drawable(network, {"<sks>": word, "sks": word})
    assert prompted(made) == 0


@pytest.mark.parametrize("name", METHODS)
def test_what_cannot_be_drawn_says_what_to_do(name: str, tmp_path: Path) -> None:
    made = job(method__name=name)
    advice = {"dreambooth": "as_lora = 32", "hypernetwork": "X/Y/Z plot"}.get(name, "")
    assert advice in why_not_drawn(made) and bool(why_not_drawn(made)) == bool(advice)
    assert (drawable(made, files(made, tmp_path)) is None) == bool(advice)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_embeddings_of_one_encoder_read_back(tmp_path: Path, ending: str) -> None:
    path, vectors = tmp_path / f"rex.{ending}", torch.randn(3, 8)
    write_embedding(path, {"clip_l": vectors}, FACTS)
    (found,) = read_embedding(path).items()
    assert found[0] == "te1" and torch.equal(found[1], vectors)


def test_embeddings_of_two_encoders_read_back(tmp_path: Path) -> None:
    path, large, small = tmp_path / "rex.safetensors", torch.randn(2, 12), torch.randn(2, 8)
    write_embedding(path, {"clip_l": small, "clip_g": large}, FACTS)
    found = read_embedding(path)
    assert torch.equal(found["te1"], small) and torch.equal(found["te2"], large)


def test_other_files_are_no_embeddings(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name, tensors in (("a", {"lora_unet_x.alpha": torch.ones(1)}), ("b", {"emb_params": torch.ones(4)})):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(BadFile, match=f"'{name}.safetensors' is no embedding"):
            read_embedding(tmp_path / f"{name}.safetensors")


def test_prompts_must_say_the_word() -> None:
    require_said(["a REX in snow", "photo of <sks>"], ["<sks>", "rex"])
    with pytest.raises(BadConfig, match="'a dog' does not say '<sks>' or 'rex'"):
        require_said(["a rex", "a dog"], ["<sks>", "rex"])
