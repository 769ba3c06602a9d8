"""`train`: a job file in, a run folder and a network file out."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lib_lora.cli.generate import default_checkpoint
from lib_lora.errors import BadConfig, Cancelled
from lib_lora.train.config import JobConfig, load_job
from lib_lora.train.jobs import JOB, Event, list_runs

HELP = "train a network as a job file (TOML) says"
INTERRUPTED = 130


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "job", type=Path, metavar="JOB.toml", help="the job; with --resume a run's own job.toml goes on with that run"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", dest="overrides", help="a setting to use instead"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the job's newest run, if there is one")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: cuda if there is one)")
    parser.add_argument("--json", action="store_true", help="print every event as a line of JSON")


def run(args: argparse.Namespace) -> int:
    """Train; 0 when finished, 130 when stopped by Ctrl-C (what is needed to resume is saved). Raises LoraError."""
    from lib_lora.train.engine import train

    job = load_job(args.job, args.overrides)
    resume = run_to_resume(args.job, job) if args.resume else None
    model = load_model(job, args.device)
    with _stop_on_interrupt() as stopped, _printer(args.json) as tell:
        try:
            result = train(job, model, on_event=tell, cancel=stopped, resume=resume)
        except Cancelled as error:
            print(f"stopped: {error}", file=sys.stderr)
            return INTERRUPTED
    if not args.json and result.file != result.folder:  # of several processes the first one says it
        print(f"network: {result.file}\nrun: {result.folder}")
    return 0


def load_model(job: JobConfig, device: str | None = None) -> Any:
    """The job's base model, or the miniature, on `device`: a file, a folder, or a download if the job asks for one."""
    import torch

    from lib_lora.models.checkpoint import load_checkpoint
    from lib_lora.models.download import download_base
    from lib_lora.train.network_file import DTYPES

    base = job.base
    device = device or _own_device()
    path = Path(os.path.expanduser(base.checkpoint)) if base.checkpoint else default_checkpoint()
    if base.download and base.checkpoint and not path.exists():
        path = download_base(base.checkpoint, os.environ.get("HF_TOKEN"))
    auto = torch.float32 if torch.device(device).type == "cpu" else None  # None: as the file has it
    prediction = None if base.prediction == "auto" else base.prediction
    dtype = DTYPES.get(base.dtype, auto)
    return load_checkpoint(path, dtype, device, use_ema=base.use_ema, prediction_type=prediction)


def _own_device() -> str:
    """This process's GPU, of several under `accelerate launch`, or the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def run_to_resume(path: Path, job: JobConfig) -> Path | None:
    """The folder `path` is the job.toml of, or else the newest run of that name in output.folder; None without one."""
    if path.name == JOB and (path.parent / "checkpoints").is_dir():
        return path.parent
    for found in list_runs(os.path.expanduser(job.output.folder)):
        with suppress(BadConfig):  # another run, perhaps of another version: no reason to stop here
            if found.job().output.name == job.output.name:
                return found.folder
    return None


@contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, or a server asked to end (SIGTERM); a second time ends at once.

    Several processes are ended by their launcher, when one of them failed: no time for a last step then.
    """
    flag = threading.Event()
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)[: 2 if alone else 1]}

    def back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: object) -> None:
        flag.set()
        back()
        print("stopping after this step; once more to stop at once", file=sys.stderr)

    for number in before:
        signal.signal(number, note)
    try:
        yield flag.is_set
    finally:
        back()


@contextmanager
def _printer(as_json: bool) -> Iterator[Callable[[Event], object]]:
    """What shows events: lines of JSON on stdout, or a progress bar on stderr."""
    if as_json:
        yield lambda event: print(json.dumps(event, ensure_ascii=False), flush=True)
        return
    from tqdm import tqdm

    with tqdm(total=0, unit="step", smoothing=0.1) as bar:
        yield lambda event: _show(bar, event)


def _show(bar: Any, event: Event) -> None:
    if event["type"] == "started":
        for reason in event["skipped"]:
            bar.write(f"skipped: {reason}", file=sys.stderr)
        bar.set_description("")
        bar.reset(event["steps"])
        bar.initial = bar.n = event["step"]
        for message in event["notes"]:
            bar.write(message, file=sys.stderr)
    elif event["type"] == "note":
        bar.write(event["message"], file=sys.stderr)
    elif event["type"] == "preparing" and event["total"]:
        bar.set_description(f"preparing {event['done']}/{event['total']}")
    elif event["type"] == "step":
        loss = "none, step left out" if event["loss"] is None else f"{event['loss']:.4f}"
        bar.set_postfix(loss=loss, lr=f"{event['lr']:.2e}", refresh=False)
        bar.update(1)
    elif event["type"] in ("sample", "saved"):
        bar.write(f"step {event['step']}: {event.get('picture') or event.get('path')}", file=sys.stderr)
