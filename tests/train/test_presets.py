"""Every preset is a job that can be started as it is, and says nothing that its method does not know."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora.errors import BadConfig
from lib_lora.train.caption_ops import caption_of
from lib_lora.train.captions import Item
from lib_lora.train.config import find
from lib_lora.train.fit import refuse_misfits, unused
from lib_lora.train.plan import Visit
from lib_lora.train.presets import PRESETS, preset_job


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_is_a_job_without_contradictions(name: str) -> None:
    job = preset_job(name, {"data.trigger": "<x>", "data.class_word": "dog"})
    refuse_misfits(job)
    assert unused(job) == []
    assert all(job.get(key) == find(key).check(value) for key, value in PRESETS[name].items())


def test_an_unknown_preset_is_told() -> None:
    with pytest.raises(BadConfig, match="presets are subject, style"):
        preset_job("none such")


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_trigger_calls_also_where_captions_were_written_without_it(name: str) -> None:
    data = preset_job(name, {"data.trigger": "xulek"}).data
    item = Item(Path("a.png"), "a dog on grass", 1, (64, 64), trigger="xulek")
    assert caption_of(item, Visit(0, 0, 0), data, 0) == "xulek, a dog on grass"
    assert preset_job(name, {"data.prepend_trigger": False}).data.prepend_trigger is False
