"""What is told of where a job stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lib_lora.train.config import make_job
from lib_lora.train.queue import QueueState
from lib_lora.train.story import Seen
from lib_lora.ui.standing import HALTED, standing
from tests.ui.fake_trainer import finished_run

SEEN = Seen("failed", {}, {}, (), (), ())


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("stopped at step 5 of 9; resume to go on", f"stopped at step 5 of 9; resume to go on. {HALTED}"),
        ("it is over.", f"it is over. {HALTED}"),
        ("was it?", f"was it? {HALTED}"),
        ("", HALTED),
    ],
)
def test_two_sentences_do_not_run_together(tmp_path: Path, message: str, told: str) -> None:
    run = finished_run(tmp_path, state="interrupted", message=message)
    queue = QueueState(run.id, ("max-1",), halted=True)
    assert standing(queue, make_job({}), run, SEEN).doing == told
    assert standing(replace(queue, halted=False), make_job({}), run, SEEN).doing == message
    paused = replace(run, state="paused")
    assert standing(queue, make_job({}), paused, SEEN).doing == message
