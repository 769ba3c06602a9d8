"""Every preset is a job that can be started as it is, and says nothing that its method does not know."""

from __future__ import annotations

import pytest

from lib_lora.errors import BadConfig
from lib_lora.train.config import find
from lib_lora.train.fit import refuse_misfits, unused
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
