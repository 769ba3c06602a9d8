"""A training job: its settings by section, each declared once, read from and written to TOML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from lib_lora.errors import BadConfig
from lib_lora.train.sections import Base, Method, NetworkSection, OptimizerSection
from lib_lora.train.sections_data import Concept, Data, Output, Prior, Training
from lib_lora.train.settings import Setting, settings_of
from lib_lora.train.toml import dump_toml, read_toml

LONGEST_NAME = 200  # bytes: file systems take 255, and steps, numbers and endings come behind it
CONCEPT = "concept"  # the one section there may be several of


SECTIONS: Mapping[str, type] = {
    "base": Base,
    "method": Method,
    "data": Data,
    "prior": Prior,
    "network": NetworkSection,
    "optimizer": OptimizerSection,
    "training": Training,
    "output": Output,
}


@dataclass(frozen=True)
class JobConfig:
    """One training job."""

    base: Base = field(default_factory=Base)
    method: Method = field(default_factory=Method)
    data: Data = field(default_factory=Data)
    prior: Prior = field(default_factory=Prior)
    network: NetworkSection = field(default_factory=NetworkSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    training: Training = field(default_factory=Training)
    output: Output = field(default_factory=Output)
    concepts: tuple[Concept, ...] = ()  # empty: the one that data describes

    def get(self, key: str) -> Any:
        """The value of `section.name`."""
        item = find(key)
        return getattr(getattr(self, item.section), item.name)

    def values(self) -> dict[str, dict[str, Any]]:
        """Every value by section and name."""
        return {name: dataclasses.asdict(getattr(self, name)) for name in SECTIONS}


def fields() -> Iterator[Setting]:
    """Every setting of a job, section by section."""
    for name, cls in SECTIONS.items():
        yield from settings_of(name, cls)


def find(key: str) -> Setting:
    """The setting called `section.name`, or `name` alone where only one section has it. Raises BadConfig."""
    if key in _by_key():
        return _by_key()[key]
    known = [item for item in fields() if key == item.name]
    if len(known) == 1:
        return known[0]
    if known:
        raise BadConfig(f"setting {key!r} is in several sections; write one of {', '.join(i.key for i in known)}")
    section = key.rpartition(".")[0]
    if section == CONCEPT:
        raise BadConfig(f"setting {key!r} is of one concept of several; write it into a [[{CONCEPT}]] table of the job")
    options = sorted(i.key for i in fields() if not section or i.section == section) or list(SECTIONS)
    raise BadConfig(f"setting {key!r} is unknown; known are {', '.join(options)}")


def make_job(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> JobConfig:
    """A checked job from `{"section.name": value}`, with `key=value` texts laid over. Raises BadConfig.

    `values["concept"]`, if given, is a list of tables, one for each concept.
    """
    chosen: dict[str, Any] = {item.key: item.default for item in fields()}
    rest = dict(values)
    concepts = _concepts(rest.pop(CONCEPT, ()))
    for key, value in rest.items():
        item = find(key)
        chosen[item.key] = item.check(value)
    for text in overrides:
        key, equals, value_text = text.partition("=")
        if not equals:
            raise BadConfig(f"override {text!r} has no '='; write section.name=value")
        item = find(key.strip())
        chosen[item.key] = item.parse(value_text.strip())
    parts: dict[str, Any] = {
        name: cls(**{item.name: chosen[item.key] for item in settings_of(name, cls)}) for name, cls in SECTIONS.items()
    }
    return _consistent(JobConfig(**parts, concepts=concepts))


def load_job(path: Path | str, overrides: Sequence[str] = ()) -> JobConfig:
    """The job of a TOML file, `key=value` overrides laid over. Raises BadConfig naming section.field."""
    return make_job(values_of(read_toml(Path(path)), repr(str(path))), overrides)


def values_of(tables: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The tables of a job file as `make_job` takes them. Raises BadConfig, calling the file `what`."""
    values: dict[str, Any] = {}
    for section, table in tables.items():
        if section == CONCEPT:
            values[CONCEPT] = table
            continue
        if section not in SECTIONS or not isinstance(table, Mapping):
            raise BadConfig(f"[{section}] in {what} is unknown; sections are {', '.join(SECTIONS)}")
        values |= {f"{section}.{name}": value for name, value in table.items()}
    return values


def dump_job(job: JobConfig) -> str:
    """The job as TOML that `load_job` reads back to an equal job."""
    tables: dict[str, Any] = dict(job.values())
    if job.concepts:
        tables[CONCEPT] = [dataclasses.asdict(concept) for concept in job.concepts]
    return dump_toml(tables)


@cache
def _by_key() -> Mapping[str, Setting]:
    return {item.key: item for item in fields()}


def _concepts(tables: Any) -> tuple[Concept, ...]:
    if not isinstance(tables, (list, tuple)) or not all(isinstance(table, Mapping) for table in tables):
        raise BadConfig(f"concept = {tables!r} is not accepted; write one [[{CONCEPT}]] table for each concept")
    known = {item.name: item for item in settings_of(CONCEPT, Concept)}
    concepts = []
    for table in tables:
        unknown = sorted(table.keys() - known.keys())
        if unknown:
            raise BadConfig(f"setting '{CONCEPT}.{unknown[0]}' is unknown; known are {', '.join(known)}")
        concepts.append(Concept(**{name: known[name].check(value) for name, value in table.items()}))
    return tuple(concepts)


def _consistent(job: JobConfig) -> JobConfig:
    network = job.network
    if not (network.train_unet or network.train_text_encoder or network.train_text_encoder_2):
        raise BadConfig(
            "network.train_unet, network.train_text_encoder and network.train_text_encoder_2 = False leave nothing to "
            "train; set one to true"
        )
    name = job.output.name
    if not name.strip() or any(sign in '/\\:*?"<>|' or sign < " " for sign in name) or name.strip(". ") != name:
        raise BadConfig(f'output.name = {name!r} is not accepted; give a file name without / \\ : * ? " < > |')
    if len(name.encode()) > LONGEST_NAME:  # found out now, not when the file is written after hours
        raise BadConfig(f"output.name = {name!r} is not accepted; give a name of at most {LONGEST_NAME} bytes")
    return job
