"""Pictures for the page: any file by any name, words that files bring along, and the model as it was."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_lora.errors import LoraError
from lib_lora.files.codec import write_network
from lib_lora.files.library import NetworkLibrary
from lib_lora.keys.layer_key import TE1, UNET, LayerKey
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.networks import registry
from lib_lora.networks.network import Network
from lib_lora.ui.drawing import Drawing, draw

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def drawing(*prompts: str, **more: Any) -> Drawing:
    return Drawing(prompts, 3, 2, 4.0, 64, **more)


def network(path: Path, seed: int, words: dict[str, Any] | None = None) -> Path:
    """A network that is seen, for one layer of the tiny model."""
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(4, 32, generator=generator), torch.randn(32, 4, generator=generator)
    layer = registry.build({"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(4.0)})
    write_network(path, Network(path.stem, {LayerKey(UNET, QUERY): layer}, embeddings=words or {}))
    return path


def weights(model: DiffusersModel) -> str:
    digest = hashlib.sha256()
    for root in model.roots().values():
        for tensor in root.state_dict().values():
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_files_go_before_the_library_and_leave_nothing_behind(tiny_model: DiffusersModel, tmp_path: Path) -> None:
    (tmp_path / "shelf").mkdir()
    network(tmp_path / "shelf" / "loud.safetensors", 1)
    other = network(tmp_path / "step 100.safetensors", 2)
    library, before, rng = NetworkLibrary([tmp_path / "shelf"]), weights(tiny_model), torch.get_rng_state()
    plain, loud, named, hidden, again = draw(
        tiny_model, library,
        drawing("a dog", "a dog <lora:loud:1>", "a dog <lora:x:1>", "a dog <lora:x:1>", "a dog", files={"x": other}),
    )  # fmt: skip
    pictures = [picture.tobytes() for picture in (plain, loud, named, hidden, again)]
    assert pictures[0] == pictures[4] and pictures[2] == pictures[3] and len(set(pictures)) == 3
    (over,) = draw(tiny_model, library, drawing("a dog <lora:loud:1>", files={"loud": other}))
    assert over.tobytes() == pictures[2] and over.size == (64, 64)
    assert weights(tiny_model) == before and torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize(
    ("prompt", "told"), [("a <lora:nobody:1>", "no network 'nobody'"), ("a <lora:gone:1>", "'gone.safetensors'"),
                         ("a <lora:loud:x>", "x"), ("a <lora:loud:1><lora:broken:1>", "broken")]
)  # fmt: skip
def test_what_cannot_be_drawn_is_told_and_the_model_as_before(
    tiny_model: DiffusersModel, tmp_path: Path, prompt: str, told: str
) -> None:
    network(tmp_path / "loud.safetensors", 1)
    (tmp_path / "broken.safetensors").write_bytes(b"no network")
    before = weights(tiny_model)
    with pytest.raises(LoraError, match=told):
        draw(tiny_model, NetworkLibrary([tmp_path]), drawing(prompt, files={"gone": tmp_path / "gone.safetensors"}))
    assert weights(tiny_model) == before


def test_words_of_a_network_are_read_with_it(tiny_model: DiffusersModel, tmp_path: Path) -> None:
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(4))
    bare, bringing = (
        network(tmp_path / f"{name}.safetensors", 1, words)
        for name, words in (("bare", {}), ("bringing", {"zwx": {"clip_l": vectors}}))
    )
    library, files = NetworkLibrary([tmp_path]), {"a": bare, "b": bringing}
    prompts = ("a zwx <lora:a:1>", "a zwx <lora:b:1>", "a dog <lora:a:1>", "a dog <lora:b:1>")
    pictures = [picture.tobytes() for picture in draw(tiny_model, library, drawing(*prompts, files=files))]
    assert pictures[0] != pictures[1] and pictures[2] == pictures[3]
    with tiny_model.extra_tokens({"zwx": {TE1: vectors}}):
        (expected,) = draw(tiny_model, library, drawing(prompts[0], files=files))
    assert expected.tobytes() == pictures[1]


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_embeddings_of_files_are_read_under_their_words(
    tiny_model: DiffusersModel, tmp_path: Path, ending: str
) -> None:
    from lib_lora.train.tokens import write_embedding

    vectors, path = torch.randn(2, 32, generator=torch.Generator().manual_seed(4)), tmp_path / f"rex.{ending}"
    write_embedding(path, {"clip_l": vectors}, {"name": "rex"})
    library, prompts = NetworkLibrary([tmp_path]), ("a zwx", "a rex", "a dog")
    plain = [picture.tobytes() for picture in draw(tiny_model, library, drawing(*prompts))]
    words = {"zwx": path, "rex": path}
    found = [picture.tobytes() for picture in draw(tiny_model, library, drawing(*prompts, words=words))]
    assert found[0] != plain[0] and found[0] == found[1] and found[2] == plain[2]
    with tiny_model.extra_tokens({"zwx": {TE1: vectors}}):
        (expected,) = draw(tiny_model, library, drawing("a zwx"))
    assert expected.tobytes() == found[0]
