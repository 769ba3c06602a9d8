"""The .pt files that training makes, in a form that the webui's check of pickled files takes."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from lib_lora.train.config import make_job
from lib_lora.train.hypernetwork import HypernetworkLearner, write_hypernetwork
from lib_lora.train.tokens import write_embedding

TAKEN = re.compile(
    r"[^/]+/(data/\d+|version|byteorder|\.data/serialization_id|data\.pkl)"
)  # all that its check lets by
FACTS = {"name": "mine", "step": 3, "sd_checkpoint": None, "sd_checkpoint_name": "base"}


def strange(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as file:
        return [name for name in file.namelist() if not TAKEN.fullmatch(name)]


def test_an_embedding_has_no_record_that_the_webui_refuses(tmp_path: Path) -> None:
    """The webui takes a zip with the records of its own torch only; newer ones write more."""
    vectors = torch.arange(8.0).view(2, 4)
    write_embedding(tmp_path / "mine.pt", {"clip_l": vectors}, FACTS)
    assert strange(tmp_path / "mine.pt") == []
    found = torch.load(tmp_path / "mine.pt", weights_only=True)
    assert torch.equal(found["string_to_param"]["*"], vectors) and found["step"] == 3


def test_a_hypernetwork_has_no_record_that_the_webui_refuses(tiny_model: Any, tmp_path: Path) -> None:
    section = make_job({"method.name": "hypernetwork", "data.folder": "pictures"}).method
    learner = HypernetworkLearner(tiny_model, section, torch.Generator().manual_seed(0))
    write_hypernetwork(tmp_path / "mine.pt", learner, FACTS)
    assert strange(tmp_path / "mine.pt") == []
    found = torch.load(tmp_path / "mine.pt", weights_only=True)
    widths = {key for key in found if isinstance(key, int)}
    assert widths == set(learner.nets)
    for width in widths:
        for own, record in zip((learner.nets[width][which] for which in ("k", "v")), found[width]):
            assert all(torch.equal(record[f"linear.{name}"], tensor) for name, tensor in own.state_dict().items())
