"""The page without a webui: Generate and Train on 127.0.0.1, sharing one loaded model."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lib_lora.errors import BadConfig
from lib_lora.files.library import NetworkLibrary
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.sample import SampleRequest, sample
from lib_lora.patch.report import PatchReport
from lib_lora.prompt import Moment, Presets, extract
from lib_lora.runtime import Runtime
from lib_lora.standalone.demo import CFG, MINIATURE_SETTINGS
from lib_lora.standalone.place import StandalonePlace
from lib_lora.ui.generate_tab import Drawn, Picture
from lib_lora.ui.local_trainer import LocalTrainer

ADDRESS = "127.0.0.1"
STOP_PATIENCE = 60.0  # seconds that the last step may take
MINIATURE_SIDE, SD1_SIDE = 128, 512  # pixels
SD1_CFG = 7.0
MINIATURE_RATES = (
    "network.alpha",
    "optimizer.lr",
    "optimizer.schedule",
    "optimizer.warmup_steps",
    "training.batch_size",
)


class Standalone:
    """One model, its networks and its trainer. Whoever uses the model holds `lock`."""

    def __init__(self, checkpoint: Path | None, networks: Path, runs: Path) -> None:
        import torch

        from lib_lora.miniature.place import checkpoint_path

        device = "cuda" if torch.cuda.is_available() else "cpu"
        path = checkpoint or checkpoint_path()
        self.model = load_checkpoint(path, device=device)
        self.side, self.cfg = (MINIATURE_SIDE, CFG) if checkpoint is None else (SD1_SIDE, SD1_CFG)
        self.rates = {key: MINIATURE_SETTINGS[key] for key in MINIATURE_RATES} if checkpoint is None else {}
        self.folder, self.runs = networks, runs
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadConfig(f"--networks {str(networks)!r} cannot be used ({error}); name another folder") from error
        self.runtime = Runtime(NetworkLibrary([self.folder]))
        self.lock = threading.Lock()
        self.jobs = LocalTrainer(StandalonePlace(self))

    def defaults(self) -> Mapping[str, Any]:
        """Settings of this host, laid over every preset."""
        return {
            **self.rates,
            "data.resolution": self.side,
            "output.folder": str(self.runs),
            "output.network_folder": str(self.folder),
            "output.sample_every": 50,
            "output.sample_cfg": self.cfg,
        }

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Use the model to draw, with nobody else on it. Raises BadConfig while it trains."""
        if not self.lock.acquire(timeout=0.5):
            raise BadConfig("the model is busy training; pause or cancel the training, or wait for its end")
        try:
            yield
        finally:
            self.lock.release()

    def generate(self, picture: Picture) -> Drawn:
        """See `GenerateService.generate`."""
        presets = Presets.load(self.folder)
        text, requests = extract(picture.prompt, presets)
        request = SampleRequest(
            prompts=[text],
            negative=picture.negative,
            seed=picture.seed,
            steps=picture.steps,
            cfg=picture.cfg,
            width=picture.size,
            height=picture.size,
            batch=picture.batch,
        )
        with self.alone():
            moment = Moment(0, request.steps)
            report: PatchReport = self.runtime.activate(self.model, requests, moment, request.seed)
            try:
                with self.runtime.words(self.model):
                    pictures = sample(self.model, request, on_step=self.runtime.stepper(self.model))
            finally:
                self.runtime.deactivate()
        skipped = [f"left out of the presets: {line}" for line in presets.skipped]
        return Drawn(pictures, "\n".join(filter(None, [report.summary(), *skipped])), report.complete)

    def add_api(self, app: Any) -> None:
        """Training by HTTP, for this machine."""
        from fastapi import Depends

        from lib_lora.ui.api import add_api, of_this_machine

        add_api(app, self.jobs, [Depends(of_this_machine)])

    def networks(self) -> list[str]:
        """The names that can be written in a tag."""
        return NetworkLibrary([self.folder]).names()  # one of its own: drawing may use the other at this moment

    def usual_size(self) -> int:
        """The side in pixels that the loaded model draws best."""
        return self.side

    def usual_cfg(self) -> float:
        """The guidance that the loaded model draws best with."""
        return self.cfg


def serve(  # noqa: PLR0913
    port: int,
    checkpoint: Path | None = None,
    networks: Path = Path("outputs/networks"),
    runs: Path = Path("outputs/runs"),
    *,
    block: bool = True,
    api: bool = False,
) -> tuple[Standalone, Any]:
    """Serve the page on 127.0.0.1:`port`, until interrupted if `block`; the program and the gradio page.

    With `api` programs of this machine can train by HTTP. What is trained when the page ends is paused.
    Raises BadConfig for a port that is taken, BadFile for a checkpoint that cannot be read.
    """
    from lib_lora.ui.page import build, launch

    _require_free(port)
    program = Standalone(checkpoint, networks, runs)
    page = build(program, program.jobs)
    with _ended_by_signals() if block else nullcontext():
        try:
            launch(page, ADDRESS, port, block, program.add_api if api else None)
        finally:
            if block:
                program.jobs.close(STOP_PATIENCE)
    return program, page


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A service manager's SIGTERM ends the page as Ctrl-C does, so that what is trained is paused, not killed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _require_free(port: int) -> None:
    """Told before the model is loaded. Raises BadConfig."""
    with socket.socket() as probe:
        if os.name != "nt":  # as servers do: a port that was in use a moment ago is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except (OSError, OverflowError) as error:
            raise BadConfig(f"port {port} on {ADDRESS} cannot be used ({error}); give another with --port") from error
