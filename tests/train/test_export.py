"""Jobs out and in: the TOML reads back to an equal job, the command is one that the command line takes."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_lora.cli import train
from lib_lora.errors import BadConfig
from lib_lora.train.config import JobConfig, fields, load_job, make_job
from lib_lora.train.export import FILL_IN, command_for, file_name, job_text, settings_of_text
from lib_lora.train.settings import Setting

TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)


def values_for(item: Setting) -> st.SearchStrategy[Any]:
    """Every value a setting accepts."""
    if item.key == "output.name":
        return st.sampled_from(["x", "my dog", "ü", "a.b"])
    if item.choices:
        return st.sampled_from(item.choices)
    low, high = item.low, item.high
    kinds: dict[type, st.SearchStrategy[Any]] = {
        bool: st.just(item.default) if item.name == "train_unet" else st.booleans(),
        int: st.integers(int(low or 0), int(high or 10)).map(lambda n: n - n % (item.multiple or 1) or int(low or 0)),
        float: st.floats(low, high, allow_nan=False),
        str: TEXT,
        tuple: st.lists(TEXT, max_size=3).map(tuple),
    }
    found = kinds[item.type]
    return st.none() | found if item.optional else found


jobs = st.fixed_dictionaries({}, optional={item.key: values_for(item) for item in fields()})


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(jobs)
def test_a_job_comes_back(values: dict[str, Any]) -> None:
    job = make_job(values)
    assert make_job(settings_of_text(job_text(job))) == job


def test_concepts_come_back() -> None:
    job = make_job({"concept": [{"folder": "/a b", "trigger": 'x"y', "repeats": 3}, {"trigger": "z"}]})
    assert make_job(settings_of_text(job_text(job))) == job


def test_only_what_is_said_is_given() -> None:
    assert settings_of_text("[network]\nrank = 4\n") == {"network.rank": 4}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("rank", "not valid TOML"),
        ("[network]\nrank = 'x'", "network.rank"),
        ("[network]\ndim = 4", "network.dim"),
        ("[nets]\nrank = 4", "nets"),
        ("x" * 2_000_000, "characters"),
        ("[[concept]]\nword = 'x'", "concept.word"),
    ],
)
def test_what_is_no_job_is_told(text: str, words: str) -> None:
    with pytest.raises(BadConfig, match=words):
        settings_of_text(text)


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("resume", [False, True])
def test_the_command_is_one_the_command_line_takes(tmp_path: Path, processes: int, resume: bool) -> None:
    job = make_job({"output.name": "my dog"})
    path = tmp_path / "a job.toml"
    path.write_text(job_text(job), encoding="utf-8")
    words = shlex.split(command_for(job, str(path), processes, resume))
    assert words[: words.index("-m")] == (
        ["python"] if processes == 1 else ["accelerate", "launch", "--num_processes=4"]
    )
    assert words[words.index("-m") : words.index("-m") + 3] == ["-m", "lib_lora", "train"]
    parser = argparse.ArgumentParser()
    train.configure(parser)
    args = parser.parse_args(words[words.index("train") + 1 :])
    assert args.resume is resume and args.job == path
    loaded: JobConfig = load_job(args.job, args.overrides)
    assert loaded.base.checkpoint == FILL_IN and loaded.output.name == "my dog"


def test_a_named_checkpoint_stays() -> None:
    assert FILL_IN not in command_for(make_job({"base.checkpoint": "/models/a.safetensors"}))


@pytest.mark.parametrize(("name", "file"), [("rex", "rex.toml"), ("my dog", "my-dog.toml"), ("ü1.2", "ü1.2.toml")])
def test_the_file_is_called_after_the_network(name: str, file: str) -> None:
    assert file_name(make_job({"output.name": name})) == file
