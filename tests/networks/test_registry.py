"""The registry finds a type by its tensor names and refuses two of one kind."""

from __future__ import annotations

import pytest

from lib_lora.errors import BadConfig
from lib_lora.networks.lora import Lora
from lib_lora.networks.registry import TYPES, by_kind, detect, ordered


def test_detect() -> None:
    assert detect(["lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha"]) is Lora
    assert detect(["strange"]) is None


def test_kinds_are_found_by_name() -> None:
    assert [by_kind(cls.kind) for cls in TYPES] == list(TYPES)
    with pytest.raises(BadConfig, match="'lora2'.*choose one of: lora"):
        by_kind("lora2")


def test_duplicates_are_refused() -> None:
    with pytest.raises(ValueError, match="'lora'"):
        ordered(Lora, Lora)
