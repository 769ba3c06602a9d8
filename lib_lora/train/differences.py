"""What a job says that is not so by default: the settings worth reading."""

from __future__ import annotations

import dataclasses
from typing import Any

from lib_lora.train.config import JobConfig, fields


@dataclasses.dataclass(frozen=True)
class Difference:
    """A setting `section.name`, its value in the job, what it is by default, and what it means."""

    key: str
    value: Any
    default: Any
    help: str


def differences(job: JobConfig) -> list[Difference]:
    """The settings that differ from the defaults, section by section; those of several concepts numbered."""
    found = [
        Difference(item.key, job.get(item.key), item.default, item.help)
        for item in fields()
        if job.get(item.key) != item.default
    ]
    for number, concept in enumerate(job.concepts, 1):
        for item in dataclasses.fields(concept):
            value = getattr(concept, item.name)
            if value != item.default:
                key = f"concept {number}: {item.name}"
                found.append(Difference(key, value, item.default, str(item.metadata["help"])))
    return found


def written(value: Any) -> str:
    """A value as people write it: `true`, `1e-4`, `a, b`; a dash for nothing."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (tuple, list)):
        return ", ".join(str(item) for item in value) or "-"
    return str(value) if value not in (None, "") else "-"
