"""A webui started for a test, and the few requests that tests send it.

`LORAKIT_WEBUI` is the webui's folder, `LORAKIT_WEBUI_PYTHON` its Python. `LORAKIT_WEBUI_CHECKPOINT` is an SD1
checkpoint to use in place of the shipped miniature; a .yaml beside it is used as well. `LORAKIT_NEIGHBOURS` are folders
of other extensions to load beside ours, divided as in PATH.

For Forge: `LORAKIT_FORGE`, `LORAKIT_FORGE_PYTHON` and, as it recognises no smaller model, `LORAKIT_FORGE_CHECKPOINT`, a
checkpoint of SD 1.x in full size.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from lib_lora.keys.checkpoint import checkpoint_layer_map, default_targets
from lib_lora.miniature import place

ROOT = Path(__file__).resolve().parents[2]
PREFIXES = {"unet": "lora_unet_", "te1": "lora_te_"}
START_SECONDS = 420  # importing torch from a cold disk takes minutes
RELOAD_SECONDS = 90
ARGUMENTS = (
    *("--skip-torch-cuda-test", "--use-cpu", "all", "--no-half", "--api", "--skip-install", "--skip-version-check"),
    *("--skip-python-version-check", "--no-download-sd-model", "--disable-console-progressbars"),
)
UP = "Startup time:"
PROMPT = "a red circle on a blue background"


@dataclass(frozen=True)
class Setup:
    """How a webui starts: with our extension enabled, disabled or (None) absent, which others are off or loaded."""

    ours: bool | None = True
    off: Sequence[str] = ()
    extensions: Mapping[str, Path] = field(default_factory=dict)
    arguments: Sequence[str] = ()


class Server:
    """One running webui on 127.0.0.1."""

    def __init__(self, port: int, data: Path) -> None:
        self.port = port
        self.data = data
        self.log = data / "server.log"
        self.networks = data / "models" / "Lora"

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer; an HTTP error carries the answer's text and the end of the server's log."""
        return self._ask(path, json.dumps(body).encode())

    def get(self, path: str) -> Any:
        return self._ask(path, None)

    def _ask(self, path: str, data: bytes | None) -> Any:
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
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

    def trained(self, settings: Mapping[str, Any], seconds: float = 240) -> Any:
        """The job that the finished run of these settings is, by our API."""
        made = self.post("/lorakit/v1/jobs", settings)["id"]
        deadline = time.monotonic() + seconds
        while (status := self.get("/lorakit/v1/status"))["state"] in ("idle", "running"):
            assert time.monotonic() < deadline, f"{status}\n{self.tail()}"
            time.sleep(0.5)
        assert (status["id"], status["state"]) == (made, "finished"), f"{status}\n{self.tail()}"
        return status

    def options(self, **values: Any) -> None:
        """Change settings."""
        self.post("/sdapi/v1/options", values)

    def probe(self) -> Any:
        """What the probe tells of the webui's inside."""
        return self.get("/probe")

    def pasted(self, text: str) -> Any:
        """The fields that pasting this infotext fills."""
        return self.post("/probe/paste", {"text": text})

    def reload(self) -> None:
        """The page's "Reload UI": scripts are loaded anew in the same process."""
        before = self._ups()
        self.post("/probe/reload", {})
        for _ in range(RELOAD_SECONDS * 5):
            if self._ups() > before:
                return
            time.sleep(0.2)
        raise AssertionError(f"the UI did not come back in {RELOAD_SECONDS} s:\n{self.tail()}")

    def _ups(self) -> int:
        return self.log.read_text(encoding="utf-8", errors="replace").count(UP)

    def tail(self, lines: int = 40) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def faults(self) -> list[str]:
        """Lines of the log that tell of exceptions, the webui's own about folders without a git remote left out."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        wrong = [block for block in text.split("*** ")[1:] if "Failed reading extension data from Git" not in block]
        return [block.splitlines()[0] for block in wrong]


Start = Callable[[Setup], AbstractContextManager[Server]]


@contextmanager
def serving(webui: Path, python: str, data: Path, arguments: Sequence[str]) -> Iterator[Server]:
    """Start the webui with its own data folder, wait until it is up, and end that very process in any case."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(port, data)
    command = [python, "launch.py", *ARGUMENTS, "--port", str(port), "--data-dir", str(data), *arguments]
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
        if UP in server.tail(60):
            return
        time.sleep(1)
    raise AssertionError(f"the webui did not start in {START_SECONDS} s:\n{server.tail()}")


def _environment() -> dict[str, str]:
    away = ("COMMANDLINE_ARGS", "PYTHONPATH", "GRADIO_SERVER_PORT", "GRADIO_SHARE")
    kept = {k: v for k, v in os.environ.items() if k not in away and not k.lower().endswith("_proxy")}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "SD_WEBUI_RESTARTING": "1", "PYTHONUNBUFFERED": "1"}
    return {**kept, **offline, **quiet, "GRADIO_SERVER_NAME": "127.0.0.1"}


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """`start(Setup(...))`: a context manager that serves the webui with one network, `loud`."""
    webui = os.environ.get("LORAKIT_WEBUI")
    if not webui:
        pytest.skip("LORAKIT_WEBUI is not set: give the folder of an AUTOMATIC1111 webui, 1.6 to 1.10.1")
    given = os.environ.get("LORAKIT_WEBUI_CHECKPOINT")
    if not given and not place.checkpoint_path().is_file():
        pytest.skip("there is no shipped miniature; set LORAKIT_WEBUI_CHECKPOINT to an SD1 checkpoint")

    def begin(setup: Setup) -> AbstractContextManager[Server]:
        data = tmp_path_factory.mktemp("ours" if setup.ours else "builtin")
        folder = data / "models" / "Stable-diffusion"
        folder.mkdir(parents=True)
        checkpoint = Path(given) if given else place.export(folder)
        furnish(data, setup, checkpoint)
        python = os.environ.get("LORAKIT_WEBUI_PYTHON", sys.executable)
        return serving(Path(webui), python, data, ["--ckpt", str(checkpoint), *setup.arguments])

    return begin


@pytest.fixture(scope="session")
def start_forge(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """`start_forge(Setup(...))`: the same with Forge, on the CPU."""
    folder, checkpoint = os.environ.get("LORAKIT_FORGE"), os.environ.get("LORAKIT_FORGE_CHECKPOINT")
    if not folder or not checkpoint:
        pytest.skip(
            "LORAKIT_FORGE or LORAKIT_FORGE_CHECKPOINT is not set: give the folder of a Forge of August 2024 or later, "
            "and a checkpoint of SD 1.x in full size"
        )

    def begin(setup: Setup) -> AbstractContextManager[Server]:
        data = tmp_path_factory.mktemp("forge")
        (data / "models" / "Stable-diffusion").mkdir(parents=True)
        furnish(data, setup, Path(checkpoint))
        python = os.environ.get("LORAKIT_FORGE_PYTHON", sys.executable)
        own = ("--always-cpu", "--gradio-allowed-path", folder)  # its own scripts are files of its page
        return serving(Path(folder), python, data, [*own, "--ckpt", checkpoint, *setup.arguments])

    return begin


def furnish(data: Path, setup: Setup, checkpoint: Path) -> None:
    """The extensions of a data folder, its settings and the network `loud`."""
    (data / "extensions" / "probe" / "scripts").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("probe.py"), data / "extensions" / "probe" / "scripts" / "probe.py")
    present = {} if setup.ours is None else {ROOT.name: ROOT}
    for name, place_of in {**present, **setup.extensions}.items():
        (data / "extensions" / name).symlink_to(place_of)
    off = [*setup.off, *([] if setup.ours else [ROOT.name])]
    (data / "config.json").write_text(json.dumps({"disabled_extensions": off}), encoding="utf-8")
    write_loud(checkpoint, data / "models" / "Lora" / "loud.safetensors")


def write_loud(checkpoint: Path, path: Path) -> None:
    """A kohya LoRA file of random factors on all default targets, strong enough to be seen."""
    generator, tensors = torch.Generator().manual_seed(1), {}
    with safe_open(str(checkpoint), "pt") as file:
        for name, key in checkpoint_layer_map(file.keys()).items():
            if key.part not in PREFIXES or key.path not in default_targets(key.part):
                continue
            weight = file.get_tensor(name).float()
            down = torch.randn(4, *weight.shape[1:], generator=generator)
            up = torch.randn(weight.shape[0], 4, *[1] * (weight.dim() - 2), generator=generator)
            stem = PREFIXES[key.part] + key.flat
            tensors[f"{stem}.lora_down.weight"] = down
            tensors[f"{stem}.lora_up.weight"] = up * weight.std() * 0.2
            tensors[f"{stem}.alpha"] = torch.tensor(4.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path))


@dataclass(frozen=True)
class Shots:
    """Pictures of one server: plain, tagged, with strengths per part, plain again."""

    plain: Any
    tagged: Any
    parts: Any
    again: Any
    infotext: str


@pytest.fixture(scope="session")
def shoot() -> Callable[[Server], Shots]:
    def shots(server: Server) -> Shots:
        plain, _ = server.picture(PROMPT)
        tagged, infotext = server.picture(f"{PROMPT} <lora:loud:1>")
        parts, _ = server.picture(f"{PROMPT} <lora:loud:0.7:-0.4>")
        again, _ = server.picture(PROMPT)
        return Shots(plain, tagged, parts, again, infotext)

    return shots


@pytest.fixture(scope="session")
def setup_class() -> type[Setup]:
    """`Setup`, for tests: they cannot import this file."""
    return Setup


@pytest.fixture(scope="session")
def builtin(start: Start, shoot: Callable[[Server], Shots]) -> Shots:
    """The built-in's pictures."""
    with start(Setup(ours=False)) as server:
        return shoot(server)


@pytest.fixture(scope="module")
def ours(start: Start, builtin: Shots) -> Iterator[Server]:
    """The webui with our extension; the other one has ended before."""
    with start(Setup()) as server:
        yield server


@pytest.fixture(scope="module")
def our_shots(ours: Server, shoot: Callable[[Server], Shots]) -> Shots:
    return shoot(ours)
