"""A webui started for a test, and the few requests that tests send it."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray
from PIL import Image

START_SECONDS = 420  # importing torch from a cold disk takes minutes
ARGUMENTS = (
    *("--skip-torch-cuda-test", "--use-cpu", "all", "--no-half", "--api", "--skip-install", "--skip-version-check"),
    *("--skip-python-version-check", "--no-download-sd-model", "--disable-console-progressbars"),
)


class Server:
    """One running webui on 127.0.0.1."""

    def __init__(self, port: int, data: Path) -> None:
        self.port = port
        self.data = data
        self.log = data / "server.log"

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer; an HTTP error carries the answer's text and the end of the server's log."""
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read()[:500]!r}\n{self.tail()}") from error

    def picture(self, prompt: str, **settings: Any) -> tuple[NDArray[numpy.int32], str]:
        """Pixels 0 to 255 (H, W, 3) and the infotext of one txt2img picture."""
        body = {"prompt": prompt, "width": 128, "height": 128, "steps": 8, "seed": 7, "sampler_name": "Euler"}
        answer = self.post("/sdapi/v1/txt2img", {**body, **settings})
        image = Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).convert("RGB")
        return numpy.asarray(image).astype(numpy.int32), json.loads(answer["info"])["infotexts"][0]

    def call(self, name: str, *values: Any) -> Any:
        """The first output of a page's named endpoint."""
        return self.post(f"/run/{name}", {"data": list(values)})["data"][0]

    def tail(self, lines: int = 40) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


@contextmanager
def serving(webui: Path, python: str, data: Path, checkpoint: Path) -> Iterator[Server]:
    """Start the webui with its own data folder, wait until it is up, and end that very process in any case."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(port, data)
    command = [python, "launch.py", *ARGUMENTS, "--port", str(port)]
    command += ["--data-dir", str(data), "--ckpt", str(checkpoint)]
    with server.log.open("wb") as out:
        process = subprocess.Popen(command, cwd=webui, env=_environment(), stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait(process, server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], server: Server) -> None:
    """Until the log's last line of the start-up: a request sent earlier would break the start."""
    for _ in range(START_SECONDS):
        assert process.poll() is None, f"the webui died:\n{server.tail()}"
        if "Startup time:" in server.tail(60):
            return
        time.sleep(1)
    raise AssertionError(f"the webui did not start in {START_SECONDS} s:\n{server.tail()}")


def _environment() -> dict[str, str]:
    away = ("COMMANDLINE_ARGS", "PYTHONPATH", "GRADIO_SERVER_PORT", "GRADIO_SHARE")
    kept = {k: v for k, v in os.environ.items() if k not in away and not k.lower().endswith("_proxy")}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "SD_WEBUI_RESTARTING": "1", "PYTHONUNBUFFERED": "1"}
    return {**kept, **offline, **quiet, "GRADIO_SERVER_NAME": "127.0.0.1"}


@pytest.fixture(scope="session", name="serving")
def serving_fixture() -> Any:
    """`serving(webui, python, data, checkpoint)`, the context manager above."""
    return serving
