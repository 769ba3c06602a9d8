"""The examination: the held-out prompts drawn by the real sampler and judged by rule."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from lib_lora.miniature.judge import Verdict, judge
from lib_lora.miniature.scenes import Scene, judge_prompts

SHEET_COLUMNS = 20
BATCH = 10


def examine(checkpoint: Path, count: int = 200, steps: int = 20, cfg: float = 4.0, sheet: Path | None = None) -> Any:
    """Draw `count` held-out prompts at 128 x 128 with seeds 0, 1, ... and count what is right.

    Returns shares of 1 for shape, colour and both, the most frequent mistakes, and all of it as `text`.
    """
    from lib_lora.models.checkpoint import load_checkpoint
    from lib_lora.models.sample import SampleRequest, sample

    model = load_checkpoint(checkpoint)
    asked = judge_prompts(count)
    pictures: list[Image.Image] = []
    for start in range(0, len(asked), BATCH):
        prompts = tuple(prompt for _, prompt in asked[start : start + BATCH])
        request = SampleRequest(prompts, seed=start, steps=steps, cfg=cfg, width=128, height=128, batch=len(prompts))
        pictures += sample(model, request)
    seen = [judge(picture) for picture in pictures]
    if sheet:
        contact_sheet(pictures, SHEET_COLUMNS).save(sheet)
    return _report([scene for scene, _ in asked], seen)


def _report(asked: list[Scene], seen: list[Verdict]) -> dict[str, Any]:
    pairs = list(zip(asked, seen, strict=True))
    shape = sum(v.shape == s.thing for s, v in pairs) / len(pairs)
    colour = sum(v.colour == s.colour for s, v in pairs) / len(pairs)
    ground = sum(v.background == s.background for s, v in pairs) / len(pairs)
    both = sum(v.agrees(s) for s, v in pairs) / len(pairs)
    wrong = Counter(f"{s.thing} -> {v.shape or 'nothing known'}" for s, v in pairs if v.shape != s.thing)
    wrong += Counter(f"{s.colour} -> {v.colour or 'none'}" for s, v in pairs if v.colour != s.colour)
    mistakes = dict(wrong.most_common(8))
    text = (
        f"{len(pairs)} held-out prompts: shape and colour right {both:.1%} (shape {shape:.1%}, colour {colour:.1%}, "
        f"background {ground:.1%})\nmost frequent mistakes: {mistakes}"
    )
    return {
        "prompts": len(pairs), "right": both, "shape": shape, "colour": colour, "background": ground,
        "mistakes": mistakes, "text": text,
    }  # fmt: skip


def contact_sheet(pictures: list[Image.Image], columns: int) -> Image.Image:
    """All pictures, which are of one size, on one sheet."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet
