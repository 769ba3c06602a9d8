"""From a kind of thing and a machine to settings that fit it."""

from __future__ import annotations

from typing import Any

import pytest

from lib_lora.train.estimate import Estimator
from lib_lora.train.presets import PRESETS, SMALL, preset_job
from lib_lora.train.wizard import (
    BEGINNINGS,
    KINDS,
    QUALITIES,
    Machine,
    low_memory,
    offers,
    preset_for,
    runnable,
    savings,
    too_large,
    with_changes,
    with_quality,
)

ESTIMATOR = Estimator()
GB = 10**9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["sd1", "sd2", "sdxl"])
def test_every_kind_begins_with_a_preset(kind: str, version: str) -> None:
    assert preset_for(kind, version) in PRESETS


def test_kinds_are_all_there() -> None:
    assert set(BEGINNINGS) == set(KINDS)


@pytest.mark.parametrize("gigabytes", [6, 8, 12, 24])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_proposed_fits(gigabytes: int, kind: str) -> None:
    machine = Machine("sd1", gigabytes * GB, eight_bit=True)
    job = preset_job(preset_for(kind, "sd1"))
    fitted = with_changes(job, savings(job, machine, ESTIMATOR))
    assert too_large(fitted, machine, ESTIMATOR) == ""
    visits = job.training.steps * job.training.batch_size
    assert fitted.training.steps * fitted.training.batch_size == visits


def test_no_more_is_saved_than_needed() -> None:
    job = preset_job("subject")
    assert savings(job, Machine("sd1", 24 * GB, True), ESTIMATOR) == {}
    assert savings(job, Machine("sd1", None, True), ESTIMATOR) == {}
    assert savings(job, Machine("unheard of", 2 * GB, True), ESTIMATOR) == {}
    six = savings(job, Machine("sd1", 6 * GB, True), ESTIMATOR)
    assert six["training.batch_size"] == 1 and six["training.checkpointing"] and "network.rank" not in six


def test_eight_bit_only_where_there_is_a_package() -> None:
    job = preset_job("subject, SDXL", {"data.resolution": 1024, "optimizer.name": "adamw"})
    assert "optimizer.name" not in savings(job, Machine("sdxl", 8 * GB, False), ESTIMATOR)


def test_sdxl_on_a_small_card_is_told_why() -> None:
    job = preset_job("subject, SDXL", {"data.resolution": 1024})
    machine = Machine("sdxl", 6 * GB, True)
    reason = too_large(with_changes(job, savings(job, machine, ESTIMATOR)), machine, ESTIMATOR)
    assert "needs about" in reason and "6 GB" in reason


def test_offers_say_why_not() -> None:
    found = {one.name: one for one in offers(Machine("sd1", 8 * GB), ESTIMATOR, {})}
    assert set(found) == set(PRESETS)
    assert found["subject"].refused == "" and found["subject, SDXL"].refused.startswith("for SDXL")
    assert "this GPU has 8 GB" in found["DreamBooth"].refused
    assert all(one.refused == "" for name, one in found.items() if name == "subject, 6 GB")
    without_gpu = offers(Machine("sdxl"), ESTIMATOR, {"data.resolution": 1024})
    assert all(one.refused == "" for one in without_gpu)


@pytest.mark.parametrize("quality", list(QUALITIES))
def test_quality_is_a_share_of_the_steps(quality: str) -> None:
    job = preset_job("subject")
    changed = with_changes(job, with_quality(job, quality))
    assert changed.training.steps == round(600 * QUALITIES[quality])
    assert with_quality(preset_job("subject", {"training.steps": 1}), quality)["training.steps"] >= 1


def test_low_memory_is_the_small_presets_rule() -> None:
    changes: dict[str, Any] = low_memory(preset_job("subject"), Machine("sd1", 8 * GB, True))
    assert changes == {**SMALL, "training.steps": 1200}


@pytest.mark.parametrize(("name", "plain"), [("adamw8bit", "adamw"), ("paged_lion8bit", "lion")])
def test_what_the_machine_lacks_is_not_asked_for(name: str, plain: str) -> None:
    job = preset_job("subject", {"optimizer.name": name})
    assert runnable(job, Machine("sd1", 8 * GB, False)) == {"optimizer.name": plain}
    assert runnable(job, Machine("sd1", 8 * GB, True)) == {} == runnable(preset_job("subject"), Machine("sd1"))
    assert low_memory(job, Machine("sd1", 8 * GB))["optimizer.name"] == "adamw"


def test_concepts_stay() -> None:
    job = preset_job("subject", {"concept": [{"trigger": "a"}, {"trigger": "b"}]})
    assert with_changes(job, {"training.steps": 7}).concepts == job.concepts
