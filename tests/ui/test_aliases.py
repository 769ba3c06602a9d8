"""Names of peers lead to settings there are; what users of sd_dreambooth_extension had is found or answered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lib_lora.train.config import CONCEPT, fields
from lib_lora.ui.aliases import ALIASES
from lib_lora.ui.form_html import MAIN, advanced, concept_fields

KEYS = {item.key for item in fields()}
DOC = Path(__file__).resolve().parents[2] / "docs" / "from-dreambooth-extension.md"


def test_aliases_are_of_settings_there_are() -> None:
    assert set(ALIASES) <= KEYS


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("network_dim", "network.rank"),
        ("unet_lr", "optimizer.lr"),
        ("gradient_checkpointing", "training.checkpointing"),
        ("stop_text_encoder", "training.te_fraction"),
        ("num_class_images_per", "prior.images"),
        ("noise_offset", "training.offset_noise"),
        ("keep_tokens", "data.keep_tags"),
        ("save_preview_every", "output.sample_every"),
        ("prodigy", "optimizer.name"),
        ("lycoris", "network.type"),
    ],
)
def test_search_words_lead_there(name: str, key: str) -> None:
    found = re.search(f'data-key="{re.escape(key)}" data-words="([^"]*)"', advanced())
    assert found is not None and name in found[1]


def test_every_setting_can_be_found() -> None:
    html = advanced()
    for key in KEYS:
        assert (f'data-lk-for="{key}"' if key in MAIN else f'data-lk-key="{key}"') in html, key


def test_the_guide_names_settings_there_are() -> None:
    text = DOC.read_text(encoding="utf-8")
    own = {f"{CONCEPT}.{item.name}" for item in concept_fields()}
    sections = "|".join(sorted({key.partition(".")[0] for key in KEYS} | {CONCEPT}))
    named = set(re.findall(rf"`((?:{sections})\.[a-z_0-9]+)`", text))
    assert len(named) > 50 and named <= KEYS | own
