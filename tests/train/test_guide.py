"""The jobs in the training guide and in the README are jobs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lib_lora.train.config import dump_job, load_job

ROOT = Path(__file__).parents[2]
JOBS = [
    (name, text)
    for name in ("docs/training.md", "README.md")
    for text in re.findall(r"```toml\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
]


@pytest.mark.parametrize(("name", "text"), JOBS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(JOBS)])
def test_the_guides_jobs_are_read(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(text, encoding="utf-8")
    job = load_job(path)
    path.write_text(dump_job(job), encoding="utf-8")
    assert load_job(path) == job


def test_the_guide_has_jobs_and_names_every_method() -> None:
    from lib_lora.train.sections import METHODS, TYPES

    guide = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert len(JOBS) >= 7
    assert all(f"`{name}`" in guide for name in (*METHODS, *TYPES))
