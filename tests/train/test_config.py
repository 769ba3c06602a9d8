"""Settings: declared once, checked, and the same after a trip through TOML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_lora.errors import BadConfig
from lib_lora.train.config import dump_job, fields, find, load_job, make_job
from lib_lora.train.presets import PRESETS, preset_job
from lib_lora.train.sections_data import Concept
from lib_lora.train.settings import Setting, settings_of
from lib_lora.train.toml import parse_toml


def test_every_setting_has_help_and_a_default_it_accepts() -> None:
    for item in fields():
        assert item.help and "\n" not in item.help
        assert item.check(item.default) == item.default
        assert find(item.key) == item


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    prompts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))),
    rate=st.floats(0, 10),
    epochs=st.none() | st.integers(1, 1000),
)
def test_toml_round_trip(tmp_path: Path, text: str, prompts: list[str], rate: float, epochs: int | None) -> None:
    values = {"data.trigger": text, "sample_prompts": prompts, "optimizer.lr": rate, "training.epochs": epochs}
    job = make_job(values)
    (tmp_path / "job.toml").write_bytes(dump_job(job).encode())
    assert load_job(tmp_path / "job.toml") == job


def any_value(item: Setting) -> st.SearchStrategy[Any]:
    """Whatever a setting accepts."""
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
    low, high = item.low or 0, item.high or 0
    if item.choices:
        return st.sampled_from(item.choices)
    if item.type is int:
        return st.integers(-(-int(low) // (item.multiple or 1)), int(high) // (item.multiple or 1)).map(
            lambda number: number * (item.multiple or 1)
        )
    kinds = {bool: st.booleans(), float: st.floats(low, high), str: text, tuple: st.lists(text, max_size=2).map(tuple)}
    return kinds[item.type]


NAMED = {"output.name": "x", "network.train_unet": True}  # not any text is a file's name
ANY = {item.key: any_value(item) for item in fields() if item.key not in NAMED}
ANY_CONCEPT = {item.name: any_value(item) for item in settings_of("concept", Concept)}


@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    values=st.fixed_dictionaries({}, optional=ANY), concepts=st.lists(st.fixed_dictionaries({}, optional=ANY_CONCEPT))
)
def test_every_setting_and_concept_survives_toml(
    tmp_path: Path, values: dict[str, Any], concepts: list[dict[str, Any]]
) -> None:
    job = make_job({**NAMED, **values, "concept": concepts})
    (tmp_path / "job.toml").write_bytes(dump_job(job).encode())
    assert load_job(tmp_path / "job.toml") == job


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("training.steps=0", ["training.steps", "0", "from 1 to"]),
        ("training.steps=many", ["training.steps", "'many'", "whole number"]),
        ("training.steps=1.5", ["training.steps", "1.5"]),
        ("optimizer.lr=NaN", ["optimizer.lr", "from 0 to 10"]),
        ("data.resolution=100", ["data.resolution", "100", "multiple of 64"]),
        ("network.type=lohax", ["network.type", "'lohax'", "lora, locon"]),
        ("data.flip=1", ["data.flip", "true or false"]),
        ("concept.trigger=x", ["concept.trigger", "[[concept]]"]),
        ("network.dim=4", ["network.dim", "unknown", "network.rank"]),
        ("steps", ["'steps'", "="]),
        ("output.name=a/b", ["output.name", "a/b"]),
        ("output.name=..", ["output.name", "'..'"]),
        ("output.name=../../x", ["output.name", "../../x"]),
        ("output.name=a\nb", ["output.name", "a\\nb"]),
        ("output.folder=a\0b", ["output.folder"]),
        ("output.folder=a\udcffb", ["output.folder"]),
        ("output.sample_prompts=a\0b", ["output.sample_prompts"]),
        ("training.steps=" + "9" * 5000, ["training.steps"]),
        ("training.steps=" + "[" * 100000, ["training.steps"]),
        ("output.sample_prompts=[1]", ["output.sample_prompts", "list of texts"]),
        ("train_unet=false", ["network.train_unet", "network.train_text_encoder"]),
    ],
)
def test_errors_name_field_value_and_what_is_accepted(override: str, names: list[str]) -> None:
    with pytest.raises(BadConfig) as caught:
        make_job({}, [override])
    for name in names:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nsteps = 'x'\n", "training.steps = 'x'"),
        ("[training]\nfoo = 1\n", "training.foo"),
        ("[trainig]\nsteps = 1\n", "[trainig]"),
        ("steps = 1\n", "[steps]"),
        ("[training\n", "not valid TOML"),
    ],
)
def test_bad_job_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadConfig, match=re.escape(message)):
        load_job(path)


def test_overrides_win_and_short_names_do() -> None:
    job = make_job({"training.steps": 5}, ["steps=6", "sample_prompts=a, b", "epochs=3"])
    assert (job.training.steps, job.output.sample_prompts, job.training.epochs) == (6, ("a, b",), 3)


def test_presets_are_valid_and_unknown_ones_refused() -> None:
    for name in PRESETS:
        assert preset_job(name, {"data.trigger": "sks"}).data.trigger == "sks"
    with pytest.raises(BadConfig, match="'huge'"):
        preset_job("huge")


def test_numbers_beyond_any_float_and_names_of_other_types_are_refused() -> None:
    with pytest.raises(BadConfig, match="optimizer.lr"):
        make_job({"optimizer.lr": 10**400})
    with pytest.raises(BadConfig, match="preset"):
        preset_job(["subject"])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["n" * 201, "\u72d7" * 67])
def test_a_name_too_long_for_the_files_to_come_is_refused_at_once(name: str) -> None:
    assert make_job({"output.name": name[:-1]}).output.name == name[:-1]
    with pytest.raises(BadConfig, match="output.name .* at most 200 bytes"):
        make_job({"output.name": name})


@pytest.mark.parametrize(
    "text", [".".join("a" * 100_000) + " = 1", "[" + " . ".join("a" * 100_000) + "]", "x = {" + ".".join("a" * 99)]
)
def test_a_name_of_very_many_parts_is_refused_at_once(text: str) -> None:
    with pytest.raises(BadConfig, match="more than 64 parts"):
        parse_toml(text, "it")
