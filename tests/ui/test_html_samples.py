"""Strips of pictures over time."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from PIL import Image

from lib_lora.ui.html_samples import SHOWN, evenly, strips
from lib_lora.ui.thumbs import Thumbs
from lib_lora.ui.trainer import Sample


def drawn(folder: Path, steps: int, prompts: tuple[str, ...]) -> list[Sample]:
    found = []
    for step in range(10, 10 * steps + 1, 10):
        for place, prompt in enumerate(prompts):
            path = folder / f"{step:06d}-{place}.png"
            Image.new("RGB", (8, 8), (step % 256, place * 90, 0)).save(path)
            found.append(Sample(step, prompt, path))
    return found


def test_one_strip_for_each_prompt_newest_last(tmp_path: Path) -> None:
    samples = drawn(tmp_path, 3, ("a dog", "<script>alert(1)</script>"))
    html = strips(samples, Thumbs(), 'rex"><b>')
    assert html.count("<section") == 2 and html.count("<img") == 6
    assert re.findall(r'lk-number">(\d+)<', html) == ["10", "20", "30"] * 2
    assert "<script>" not in html and "<b>" not in html
    assert re.findall(r"&quot;sample&quot;: (\d+)", html) == ["0", "2", "4", "1", "3", "5"]


def test_pictures_that_are_gone_are_left_out(tmp_path: Path) -> None:
    samples = drawn(tmp_path, 2, ("a dog",))
    samples[0].path.unlink()
    assert strips(samples, Thumbs(), "x").count("<img") == 1
    samples[1].path.unlink()
    assert strips(samples, Thumbs(), "x") == ""


def test_long_strips_are_thinned_evenly(tmp_path: Path) -> None:
    samples = drawn(tmp_path, 50, ("a dog",))
    html = strips(samples, Thumbs(), "x")
    assert html.count("<img") == SHOWN and "more between them" in html
    kept = evenly(list(enumerate(samples)), SHOWN)
    assert kept[0][0] == 0 and kept[-1][0] == 49 and max(b[0] - a[0] for a, b in pairwise(kept)) <= 3
