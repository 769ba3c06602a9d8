"""Real training behind the page: paused, drawn in between, killed and started again, and it all comes out the same."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora.errors import BadConfig
from lib_lora.standalone.server import ADDRESS, Standalone, serve
from lib_lora.train.config import JobConfig
from lib_lora.train.engine import train
from lib_lora.train.jobs import Run
from lib_lora.ui.generate_tab import Picture

WAIT = 120.0
ASKED = Picture(prompt="a red circle", negative="", seed=5, steps=2, cfg=4.0, size=64, batch=1)
IN_ANOTHER_PROCESS = """
import json, sys, time
from pathlib import Path
from lib_lora.standalone.server import Standalone
checkpoint, root, settings = sys.argv[1:]
program = Standalone(Path(checkpoint), Path(root) / "networks", Path(root) / "runs")
program.jobs.submit(json.loads(settings))
program.jobs.submit({**json.loads(settings), "output.name": "second"})
while True:
    print(program.jobs.status().step, flush=True)
    time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, colour in enumerate([(200, 30, 30), (30, 200, 30)]):
        Image.new("RGB", (64, 64), colour).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def settings(pictures: Path) -> dict[str, Any]:
    return {
        "preset": "quick test", "data.folder": str(pictures), "data.trigger": "sks", "data.class_word": "circle",
        "data.resolution": 64, "training.batch_size": 2, "training.steps": 8, "output.name": "first",
        "output.state_every": 2, "output.sample_every": 0, "output.sidecar": False, "optimizer.lr": 1e-2,
    }  # fmt: skip


@pytest.fixture
def start(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[Callable[[], Standalone]]:
    made: list[Standalone] = []

    def build() -> Standalone:
        made.append(Standalone(tiny_checkpoint, tmp_path / "networks", tmp_path / "runs"))
        return made[-1]

    yield build
    for program in made:
        program.jobs.close(WAIT)


class Gate:
    """Holds a run at its first step until it is let go."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.append = Run.append

    def __call__(self, run: Run, event: dict[str, Any]) -> None:
        self.append(run, event)
        if event["type"] == "step" and event["step"] == 1:
            self.reached.set()
            assert self.go.wait(WAIT)


def undisturbed(program: Standalone, settings: dict[str, Any], folder: Path) -> bytes:
    """The file of a run of the same job from start to end."""
    job: JobConfig = program.jobs.job({**settings, "output.folder": str(folder), "output.network_folder": ""})
    return train(job, program.model).file.read_bytes()


def until(what: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_pausing_drawing_and_going_on_is_as_if_nothing_was(
    start: Callable[[], Standalone], settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = start()
    program.side = 64
    whole = undisturbed(program, settings, tmp_path / "other")
    plain = program.generate(ASKED).pictures[0].tobytes()
    jobs, gate = program.jobs, Gate()
    monkeypatch.setattr(Run, "append", lambda run, event: gate(run, event))
    id = jobs.submit(settings)
    assert gate.reached.wait(WAIT) and jobs.status().state == "running"
    with pytest.raises(BadConfig, match="busy training"):
        program.generate(ASKED)
    with pytest.raises(BadConfig, match="busy training"):
        jobs.draw(["a circle"], 5, 2, 4.0)
    jobs.save_now()
    jobs.pause()
    gate.go.set()
    jobs.queue.wait(WAIT)
    status = jobs.status()
    assert (status.state, status.step, jobs.run(id).can_resume) == ("paused", 1, True)
    assert program.generate(ASKED).pictures[0].tobytes() == plain, "the model is free, and as it was"
    ((step, kept),) = (jobs.run(id).saved or {}).items()
    bare, tagged = jobs.draw(["a red circle", "a red circle <lora:now:1>"], 5, 2, 4.0, files={"now": kept})
    assert step == 1 and bare.tobytes() != tagged.tobytes()
    assert program.generate(ASKED).pictures[0].tobytes() == plain
    jobs.resume()
    until(lambda: jobs.status().state == "finished")
    assert jobs.status().result is not None and jobs.status().result.read_bytes() == whole
    assert program.networks() == ["first"]
    jobs.resume("first", {"training.steps": 9, "optimizer.lr": 1e-3})
    until(lambda: jobs.status().state == "finished" and jobs.status().step == 9)
    assert jobs.status().result.read_bytes() != whole and jobs.history.job("first").training.steps == 9
    program.generate(Picture("a red circle <lora:first:1>", *list(vars(ASKED).values())[1:]))
    assert program.generate(ASKED).pictures[0].tobytes() == plain


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_in_the_middle_and_started_again(
    start: Callable[[], Standalone], settings: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    import json

    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tiny_checkpoint), str(tmp_path), json.dumps(settings)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 3:
                process.send_signal(signal.SIGKILL)
                break
    program = start()
    jobs = program.jobs
    status = jobs.status()
    assert (status.state, status.id, status.waiting) == ("interrupted", "first", ("second",))
    assert status.step >= 3 and "Resume" in status.doing
    time.sleep(0.1)
    assert jobs.status().state == "interrupted", "nothing begins by itself"
    whole = [undisturbed(program, {**settings, "output.name": n}, tmp_path / "other") for n in ("first", "second")]
    assert jobs.resume() == "Going on with 'first'."
    until(lambda: [run.state for run in jobs.runs()] == ["finished"] * 2)
    assert [(tmp_path / "networks" / f"{n}.safetensors").read_bytes() for n in ("first", "second")] == whole
    events = [event["step"] for event in program.jobs.history.open("first").events() if event["type"] == "started"]
    assert events[0] == 0 and events[1] in (2, 4, 6), "it went on from the last state"


def test_a_page_that_ends_pauses_what_is_trained(
    start: Callable[[], Standalone], settings: dict[str, Any], tmp_path: Path
) -> None:
    first = start()
    first.jobs.submit({**settings, "training.steps": 10000})
    until(lambda: first.jobs.status().step >= 1)
    first.jobs.close(WAIT)
    assert first.jobs.queue.wait(WAIT).busy is False
    second = start()
    assert (second.jobs.status().state, second.jobs.run("first").can_resume) == ("paused", True)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_the_program_is_ended_politely(
    tiny_checkpoint: Path, settings: dict[str, Any], tmp_path: Path, port: int, number: int
) -> None:
    import httpx

    places = ["--networks", str(tmp_path / "networks"), "--runs", str(tmp_path / "runs")]
    command = [sys.executable, "-m", "lib_lora", "ui", "--api", "--port", str(port), *places]
    address = f"http://{ADDRESS}:{port}/lorakit/v1"
    with subprocess.Popen(
        [*command, "--checkpoint", str(tiny_checkpoint)], cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        until(lambda: answers(address))
        httpx.post(f"{address}/jobs", json={**settings, "training.steps": 10000})
        until(lambda: httpx.get(f"{address}/status").json()["step"] >= 1)
        process.send_signal(number)
        assert process.wait(WAIT) in (0, 130)
    assert Run(tmp_path / "runs" / "first").status().state == "paused"


def answers(address: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{address}/status").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("api", [False, True])
def test_http_is_there_only_if_asked_for(tiny_checkpoint: Path, tmp_path: Path, port: int, api: bool) -> None:
    import httpx

    program, page = serve(port, tiny_checkpoint, tmp_path / "networks", tmp_path / "runs", block=False, api=api)
    try:
        address = f"http://{ADDRESS}:{port}"
        answer = httpx.get(f"{address}/lorakit/v1/status")
        if not api:
            assert answer.status_code == 404
            return
        assert answer.json()["state"] == "idle"
        described = httpx.get(f"{address}/lorakit/v1/openapi.json").json()
        assert "/lorakit/v1/jobs" in described["paths"]
        refused = httpx.get(f"{address}/lorakit/v1/status", headers={"origin": "http://evil.example"})
        assert refused.status_code == 403
        answer = httpx.post(f"{address}/lorakit/v1/jobs", json={"data.folder": "/nowhere"})
        assert answer.status_code == 422 and "no folder '/nowhere'" in answer.json()["detail"]
        assert "lorakit" in httpx.get(address).text
    finally:
        page.close()
        program.jobs.close()
