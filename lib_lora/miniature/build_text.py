"""Second stage: the text encoder, taught to tell from a caption what the drawing shows.

CLIP learns its text side against pictures; here the scene itself stands in for the picture. From the end token
and from the padding behind it, linear heads must read thing, colour, background, size and position.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path

import torch
from torch import Tensor, nn

from lib_lora.miniature.nets import TEXT_CONFIG, new_text_encoder
from lib_lora.miniature.scenes import (
    COLOURS,
    PLAIN_BACKGROUNDS,
    POSITIONS,
    SHAPE_NAMES,
    SIZES,
    TEXTURES,
    TOY,
    Scene,
    caption,
    draw_lots,
    ground,
)
from lib_lora.models.tokenizer import load_tokenizer

log = logging.getLogger(__name__)
ANSWERS: dict[str, tuple[str, ...]] = {
    "thing": ("", *SHAPE_NAMES, TOY),
    "colour": ("", *COLOURS),
    "background": ("", *PLAIN_BACKGROUNDS, *TEXTURES),
    "size": tuple(sorted(SIZES)),
    "position": ("", *POSITIONS),
}


def said(text: str, scene: Scene) -> list[int]:
    """The index of each answer that the caption gives; index 0 where it says nothing."""
    words = text.replace(",", "").split()
    facts = {
        "thing": scene.thing,
        "colour": scene.colour if scene.thing != TOY and scene.colour in words else "",
        "background": scene.background if text.endswith(ground(scene.background)) else "",
        "size": scene.size if scene.size in words else "",
        "position": scene.position if scene.position in text else "",
    }
    if facts["colour"] and words.count(scene.colour) == 1 and scene.colour == facts["background"]:
        facts["colour"] = ""
    return [ANSWERS[name].index(fact) for name, fact in facts.items()]


def token_batch(tokenizer: object, texts: list[str], rng: random.Random, junk: float = 0.2) -> Tensor:
    """(batch, 77) token ids; now and then a random word is slipped in, so that unknown words do no harm."""
    ids = tokenizer(texts, padding="max_length", max_length=77, truncation=True).input_ids  # type: ignore[operator]
    end = TEXT_CONFIG["eos_token_id"]
    for row in ids:
        if rng.random() < junk:
            at = rng.randint(1, row.index(end))
            row.insert(at, rng.randrange(256, TEXT_CONFIG["bos_token_id"]))
            row.pop()
            row[-1] = end
    return torch.tensor(ids)


def train_text(folder: Path, steps: int, seed: int) -> None:
    """Train the text encoder and leave `folder/text.pt`."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    encoder, tokenizer = new_text_encoder(), load_tokenizer(folder / "clip")
    encoder.eval()  # no dropout in CLIP's text model; eval only for clarity
    heads = nn.ModuleDict({name: nn.Linear(TEXT_CONFIG["hidden_size"], len(a)) for name, a in ANSWERS.items()})
    params = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(params, lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for step in range(1, steps + 1):
        scenes = [draw_lots(rng) for _ in range(96)]
        texts = [caption(s, rng) for s in scenes]
        wanted = torch.tensor([said(t, s) for t, s in zip(texts, scenes, strict=True)])
        ids = token_batch(tokenizer, texts, rng)
        length = 30 if step < 0.7 * steps else 77
        states = encoder(ids[:, :length]).last_hidden_state
        ends = ids.eq(TEXT_CONFIG["eos_token_id"]).int().argmax(1)
        behind = torch.stack([torch.randint(int(e), length, (4,)) for e in ends])  # end token or padding
        behind[:, 0] = ends
        picked = states.gather(1, behind[..., None].expand(-1, -1, states.shape[2]))  # (96, 4, width)
        losses = [
            nn.functional.cross_entropy(heads[name](picked).flatten(0, 1), wanted[:, i].repeat_interleave(4))
            for i, name in enumerate(ANSWERS)
        ]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            right = [
                (heads[name](picked[:, 0]).argmax(1) == wanted[:, i]).float().mean().item()
                for i, name in enumerate(ANSWERS)
            ]
            log.info("text %d/%d loss %.3f right %s", step, steps, loss, [round(r, 2) for r in right])
            torch.save(encoder.state_dict(), folder / "text.pt")
    torch.save(encoder.state_dict(), folder / "text.pt")
