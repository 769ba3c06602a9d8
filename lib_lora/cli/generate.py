"""`generate`: draw pictures with any SD1.x checkpoint, with the networks that the prompt's tags name."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lib_lora import __version__
from lib_lora.errors import BadConfig, LoraError
from lib_lora.prompt import Moment, Presets, extract

if TYPE_CHECKING:
    from PIL.Image import Image

    from lib_lora.models.sample import SampleRequest
    from lib_lora.patch.report import PatchReport

HELP = "draw pictures from a prompt; <lora:name:strength> in it applies a network"
MINIATURE_SIZE, USUAL_SIZE = (128, 128), (512, 512)


def default_checkpoint() -> Path:
    """The miniature that the project ships."""
    return Path(__file__).resolve().parents[1] / "miniature" / "miniature.safetensors"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--prompt", required=True, help="what to draw; may hold <lora:name:0.8> and so on (docs/syntax.md)"
    )
    parser.add_argument("--negative", default="", help="what not to draw")
    parser.add_argument("--checkpoint", type=Path, help="an SD1.x .safetensors or .ckpt (default: the miniature)")
    parser.add_argument(
        "--networks", type=Path, action="append", metavar="DIR", help="a folder of network files, and of presets"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; the next ones count up")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--size", metavar="WxH", help="pixels, multiples of 8 (default: 128x128 miniature, else 512x512)"
    )
    parser.add_argument(
        "--batch", type=int, default=1, help="how many; more than one go to FILE-1.png, FILE-2.png, ..."
    )
    parser.add_argument("--cfg", type=float, default=7.0, help="how strictly to follow the prompt; 1 is unguided")
    parser.add_argument("--sampler", default="DPM++ 2M", help="DPM++ 2M, Euler or DDIM")
    parser.add_argument("--out", type=Path, default=Path("lorakit.png"), metavar="FILE.png")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Draw, write the files, and say what became of each network. Raises LoraError on bad input."""
    path = args.checkpoint if args.checkpoint is not None else default_checkpoint()
    width, height = parse_size(args.size) if args.size else _default_size(path)
    _check_paths(args)
    prompt, tags = extract(args.prompt, _presets(args.networks or []))

    # Only now: importing torch takes seconds, and bad input should be told at once.
    import torch

    from lib_lora.files.library import NetworkLibrary
    from lib_lora.models.checkpoint import load_checkpoint
    from lib_lora.models.sample import SampleRequest, sample
    from lib_lora.runtime import Runtime

    request = SampleRequest(
        prompts=[prompt],
        negative=args.negative,
        seed=args.seed,
        steps=args.steps,
        cfg=args.cfg,
        width=width,
        height=height,
        batch=args.batch,
        sampler=args.sampler,
    )
    model = load_checkpoint(path, device="cuda" if torch.cuda.is_available() else "cpu")
    runtime = Runtime(NetworkLibrary(args.networks or []))
    report = runtime.activate(model, tags, Moment(0, args.steps), args.seed)
    if report.errors:
        # Asked for by name and not usable: a picture without it is not what was asked for.
        raise LoraError("; ".join(report.errors))
    if not args.json and report.networks:
        print(report.summary())
    began = time.perf_counter()
    try:
        with runtime.words(model):
            images = sample(model, request, on_step=runtime.stepper(model, _progress(args.json)))
    finally:
        runtime.deactivate()
    files = _write_all(images, args.out, replace(request, prompts=[args.prompt]), model.name)
    _tell(args.json, files, request, report, time.perf_counter() - began)
    return 0


def _check_paths(args: argparse.Namespace) -> None:
    for folder in args.networks or ():
        if not os.path.isdir(folder):  # unlike Path's, false for names too long
            raise BadConfig(f"--networks {str(folder)!r} is no folder; give the one with the network files")
    if args.out.suffix.lower() != ".png":
        raise BadConfig(f"--out {str(args.out)!r} does not end in .png; give a .png file")


def _presets(folders: list[Path]) -> Presets:
    """Those of the networks folders; lines that are none are told."""
    presets = Presets.load(*folders)
    for line in presets.skipped:
        print(f"left out of the presets: {line}", file=sys.stderr)
    return presets


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "512x768". Raises BadConfig if it is none, or no multiple of 8."""
    found = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", text.strip())
    if found is None:
        raise BadConfig(f"--size {text!r} is not WIDTHxHEIGHT; write for example 512x512")
    width, height = int(found[1]), int(found[2])
    if not width or not height or width % 8 or height % 8:
        raise BadConfig(
            f"--size {text!r}: width and height must be multiples of 8; try {_round8(width)}x{_round8(height)}"
        )
    return width, height


def _round8(value: int) -> int:
    return max(round(value / 8), 1) * 8


def _default_size(path: Path) -> tuple[int, int]:
    return MINIATURE_SIZE if path.resolve() == default_checkpoint() else USUAL_SIZE


def infotext(request: SampleRequest, index: int, model: str) -> str:
    """The settings of picture `index` as the webui writes them, so that its "PNG Info" can read them."""
    prompt = request.prompts[0] if len(request.prompts) == 1 else request.prompts[index]
    settings = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "CFG scale": f"{request.cfg:g}",
        "Seed": request.seed + index,
        "Size": f"{request.width}x{request.height}",
        "Model": model,
        "Version": f"lorakit {__version__}",
    }
    negative = [f"Negative prompt: {request.negative}"] if request.negative else []
    return "\n".join([prompt, *negative, ", ".join(f"{name}: {value}" for name, value in settings.items())])


def write_png(image: Image, path: Path, text: str) -> None:
    """Write atomically, with `text` in the chunk `parameters`. Raises BadConfig if the place cannot be written."""
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_itxt("parameters", text) if not text.isascii() else about.add_text("parameters", text)
    temp = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temp = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            image.save(file, "png", pnginfo=about)
        os.chmod(temp, 0o644)
        os.replace(temp, path)
    except OSError as error:
        if temp is not None:
            Path(temp).unlink(missing_ok=True)
        raise BadConfig(f"{path} cannot be written ({error.strerror or error}); give another --out") from error


def _write_all(images: list[Image], out: Path, request: SampleRequest, model: str) -> list[Path]:
    one = len(images) == 1
    files = [out if one else out.with_name(f"{out.stem}-{i + 1}{out.suffix}") for i in range(len(images))]
    for i, (image, file) in enumerate(zip(images, files)):
        write_png(image, file, infotext(request, i, model))
    return files


def _progress(quiet: bool) -> Callable[[int, int], None] | None:
    if quiet or not sys.stderr.isatty():
        return None

    def show(done: int, steps: int) -> None:
        print(f"\rstep {done}/{steps}", end="\n" if done == steps else "", file=sys.stderr, flush=True)

    return show


def _tell(as_json: bool, files: list[Path], request: SampleRequest, report: PatchReport, seconds: float) -> None:
    if not as_json:
        for i, file in enumerate(files):
            print(f"{file} (seed {request.seed + i})")
        print(f"{len(files)} picture{'s' if len(files) > 1 else ''} in {seconds:.1f} s")
        return
    networks = [
        {"name": n.name, "applied": n.applied, "unmatched": list(n.unmatched), "mismatched": list(n.mismatched)}
        for n in report.networks
    ]
    pictures = [{"file": str(file), "seed": request.seed + i} for i, file in enumerate(files)]
    print(json.dumps({"pictures": pictures, "networks": networks, "seconds": round(seconds, 3)}, indent=2))
