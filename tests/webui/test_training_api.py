"""Training by HTTP in a real webui, behind its password: paused for a picture, the UI reloaded, the result the same."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from safetensors.torch import load_file

pytestmark = pytest.mark.webui
PROMPT = "a red circle on a blue background"
PATIENCE = 240
ROOT = Path(__file__).resolve().parents[2]


class Client:
    """Asks a server as somebody."""

    def __init__(self, server: Any, who: str) -> None:
        self.server, self.who = server, base64.b64encode(who.encode()).decode()

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status code and the JSON answer."""
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {self.who}"}
        data = json.dumps(body).encode() if body is not None else None
        url = f"http://127.0.0.1:{self.server.port}{path}"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, data, headers, method=method), timeout=300
            ) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def jobs(self, method: str, path: str, body: Any = None) -> Any:
        """An answer that must be a good one."""
        code, answer = self.ask(method, f"/lorakit/v1{path}", body)
        assert code in (200, 201), (path, code, answer, self.server.tail())
        return answer

    def until(self, what: Callable[[Any], bool]) -> Any:
        """The status when it is so."""
        deadline = time.monotonic() + PATIENCE
        while not what(status := self.jobs("GET", "/status")):
            assert time.monotonic() < deadline, f"{status}\n{self.server.tail()}"
            time.sleep(0.1)
        return status

    def picture(self, prompt: str) -> bytes:
        """The bytes of one picture."""
        body = {"prompt": prompt, "width": 128, "height": 128, "steps": 4, "seed": 7, "sampler_name": "Euler"}
        code, answer = self.ask("POST", "/sdapi/v1/txt2img", body)
        assert code == 200, answer
        return base64.b64decode(answer["images"][0])


@pytest.fixture(scope="module")
def server(start: Any, setup_class: Any) -> Iterator[Any]:
    with start(setup_class(arguments=("--api-auth", "me:secret"))) as running:
        yield running


@pytest.fixture
def me(server: Any) -> Client:
    return Client(server, "me:secret")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    pixels = numpy.random.default_rng(0).integers(0, 255, (2, 128, 128, 3), dtype=numpy.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


def test_nobody_asks_without_the_password(server: Any, me: Client) -> None:
    for who in ("me:wrong", "you:secret", ":"):
        stranger = Client(server, who)
        for method, path in (("GET", "/status"), ("GET", "/jobs"), ("POST", "/jobs"), ("GET", "/openapi.json")):
            assert stranger.ask(method, f"/lorakit/v1{path}", {} if method == "POST" else None)[0] == 401, path
    assert me.jobs("GET", "/status")["state"] == "idle"
    code, described = me.ask("GET", "/openapi.json")
    assert code == 200 and "/lorakit/v1/jobs" in described["paths"], "the webui's own description knows it"


def test_paused_for_a_picture_and_through_a_reload_of_the_ui(server: Any, me: Client, pictures: Path) -> None:
    job = {"preset": "quick test", "data.folder": str(pictures), "data.trigger": "sks", "data.resolution": 128}
    job |= {"output.sample_every": 0, "output.sidecar": False, "training.steps": 24, "training.batch_size": 2}
    job |= {"optimizer.lr": 0.05}
    plain = me.picture(PROMPT)
    assert me.jobs("POST", "/jobs", {**job, "output.name": "whole"}) == {"id": "whole"}
    assert me.jobs("POST", "/jobs", {**job, "output.name": "parted"}) == {"id": "parted"}
    me.until(lambda status: status["id"] == "parted" and status["step"] >= 2)
    me.jobs("POST", "/jobs/parted/pause")
    status = me.until(lambda status: status["state"] != "running")
    assert (status["state"], status["id"], status["total"]) == ("paused", "parted", 24), status
    assert me.picture(PROMPT) == plain, "the model is free, and as it was"
    me.jobs("POST", "/jobs/parted/resume")
    first = me.until(lambda now: now["state"] == "running" and now["step"] > status["step"])
    server.reload()
    status = me.until(lambda status: status["state"] != "running")
    assert (status["state"], status["id"]) == ("paused", "parted") and status["step"] >= first["step"]
    me.jobs("POST", "/jobs/parted/resume")
    status = me.until(lambda status: status["state"] != "running")
    assert status["state"] == "finished", status
    whole, parted = (load_file(str(server.networks / f"{name}.safetensors")) for name in ("whole", "parted"))
    assert whole.keys() == parted.keys() and all(whole[name].equal(parted[name]) for name in whole)
    kinds = [event["type"] for event in me.jobs("GET", "/jobs/parted/events")["events"]]
    assert kinds.count("step") == 24 and kinds.count("paused") == 2 and kinds[-1] == "finished"
    assert me.picture(f"{PROMPT} {status['tag']}") != plain
    assert me.picture(PROMPT) == plain
    assert [run["id"] for run in me.jobs("GET", "/jobs")] == ["parted", "whole"]


def test_the_job_trains_the_same_without_the_webui(server: Any, me: Client, pictures: Path, tmp_path: Path) -> None:
    """diffusers' modules from the checkpoint's file in place of the webui's own: sums in another order, no more."""
    job = {"preset": "quick test", "data.folder": str(pictures), "data.trigger": "sks", "data.resolution": 128}
    job |= {"output.sample_every": 0, "output.sidecar": False, "output.dtype": "fp32", "output.name": "inside"}
    me.jobs("POST", "/jobs", {**job, "training.steps": 12})
    assert me.until(lambda status: status["state"] != "running")["state"] == "finished"
    [written] = server.data.rglob("inside/job.toml")
    given = os.environ.get("LORAKIT_WEBUI_CHECKPOINT")
    base = given or next((server.data / "models" / "Stable-diffusion").glob("*.safetensors"))
    words = [os.environ.get("LORAKIT_WEBUI_PYTHON", sys.executable), "-m", "lib_lora", "train", str(written)]
    words += [
        "--set",
        f"base.checkpoint={base}",
        "--set",
        f"output.folder={tmp_path}",
        "--set",
        f"output.network_folder={tmp_path}",
    ]
    subprocess.run(words, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)
    inside = load_file(str(server.networks / "inside.safetensors"))
    outside = load_file(str(tmp_path / "inside.safetensors"))
    assert inside.keys() == outside.keys()
    apart = sum(float((inside[name].double() - outside[name].double()).square().sum()) for name in inside) ** 0.5
    whole = sum(float(tensor.double().square().sum()) for tensor in inside.values()) ** 0.5
    print(f"relative difference after 12 steps: {apart / whole:.1e}")  # 2e-7, as between one thread and two
    assert apart < 1e-5 * whole
    moved = [tensor for name, tensor in inside.items() if name.endswith("lora_up.weight")]
    assert all(tensor.any() for tensor in moved), "they begin at zero"


def test_the_log_tells_of_no_exception(server: Any) -> None:
    assert server.faults() == []
