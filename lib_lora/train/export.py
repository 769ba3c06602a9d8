"""A job out of the page and into it: as TOML, as the command for a server, and read back with nothing lost."""

from __future__ import annotations

import shlex
from typing import Any

from lib_lora.errors import BadConfig
from lib_lora.train.config import CONCEPT, JobConfig, dump_job, make_job, values_of
from lib_lora.train.toml import parse_toml

LARGEST = 1 << 20  # characters of a job that is pasted
CHECKPOINT = "base.checkpoint"
FILL_IN = "CHECKPOINT.safetensors"


def job_text(job: JobConfig) -> str:
    """The job as TOML, every setting in it."""
    return dump_job(job)


def command_for(job: JobConfig, file: str = "job.toml", processes: int = 1, resume: bool = False) -> str:
    """The command that trains the job's file on another machine, run in this program's folder.

    With several `processes` (GPUs) accelerate starts them. Where the job says no checkpoint (the page trains against
    the loaded one), `FILL_IN` stands for its name.
    """
    words = ["python"] if processes == 1 else ["accelerate", "launch", f"--num_processes={processes}"]
    words += ["-m", "lib_lora", "train", file]
    if not job.base.checkpoint:
        words += ["--set", f"{CHECKPOINT}={FILL_IN}"]
    if resume:
        words.append("--resume")
    return " ".join(shlex.quote(word) for word in words)


def file_name(job: JobConfig) -> str:
    """What the job's file is called: the network's name, as far as every system takes it."""
    name = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in job.output.name).strip(".-")
    return f"{name or 'job'}.toml"


def settings_of_text(text: str) -> dict[str, Any]:
    """The settings a job's TOML says, checked, those it leaves out left out. Raises BadConfig naming section.name."""
    if len(text) > LARGEST:
        raise BadConfig(f"a job of {len(text)} characters is no job; paste the content of a .toml file")
    if not text.strip():
        raise BadConfig("the job is empty; paste the content of a .toml file")
    values = values_of(parse_toml(text, "the job"), "the job")
    job = make_job(values)
    found: dict[str, Any] = {key: job.get(key) for key in values if key != CONCEPT}
    if job.concepts:
        found[CONCEPT] = [dict(vars(concept)) for concept in job.concepts]
    return found
