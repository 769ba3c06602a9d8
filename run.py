#!/usr/bin/env python3
"""One command for a fresh machine: `python3 run.py demo`, `ui` or `test`.

Needs only some Python 3.8 or newer. Makes `.venv` beside this file from the pinned lists in requirements/ and runs
itself again inside it. LORAKIT_PYTHON chooses the Python that `.venv` is made from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_lora.interpreters import NEWEST, SetupError, candidates, choose, probe

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = "lorakit.json"  # in .venv: "making" while it is being filled, then "ready" and what it was filled with
SIZES = {"base": "320 MB", "dev": "430 MB", "newest": "360 MB", "cuda": "2.5 GB"}  # downloads; cuda: besides


def lock_files(version: tuple[int, int], level: str) -> list[Path]:
    """The requirement lists for this Python; `level` is "base" (demo, ui) or "dev" (test)."""
    names = ["newest.txt"] if version >= NEWEST else ["base.txt", "dev.txt"] if level == "dev" else ["base.txt"]
    return [ROOT / "requirements" / name for name in names]


def fingerprint(version: tuple[int, int], level: str) -> str:
    """A hash that changes with the Python version and with the content of its lists."""
    digest = hashlib.sha256(repr(version).encode())
    for path in lock_files(version, level):
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def read_stamp(venv: Path) -> dict[str, Any]:
    """What this `.venv` holds: {"state": "absent" | "foreign" | "making" | "ready", "version", "level", "hash"}."""
    if venv.exists() and not venv.is_dir():
        return {"state": "foreign"}
    if not venv.exists() or not any(venv.iterdir()):
        return {"state": "absent"}
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"state": "foreign"}
    except ValueError:
        return {"state": "making"}
    return stamp if isinstance(stamp, dict) and "state" in stamp else {"state": "making"}


def write_stamp(venv: Path, stamp: Mapping[str, Any]) -> None:
    """Write the stamp whole or not at all."""
    temporary = venv / (STAMP + ".tmp")
    temporary.write_text(json.dumps(stamp), encoding="utf-8")
    os.replace(temporary, venv / STAMP)


def venv_python(venv: Path) -> Path:
    """The interpreter inside a venv on this system."""
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def plan(stamp: Mapping[str, Any], works: bool, level: str) -> str:
    """What the `.venv` needs for `level`: "nothing", "install" (a list changed) or "make" (anew)."""
    if stamp["state"] == "foreign":
        raise SetupError(f"{VENV} was not made by run.py. Rename or delete it, then run this again.")
    version = stamp.get("version")
    if stamp["state"] != "ready" or not works or not isinstance(version, list):
        return "make"
    level = wider(level, stamp)
    return "nothing" if stamp.get("hash") == fingerprint((version[0], version[1]), level) else "install"


def wider(level: str, stamp: Mapping[str, Any]) -> str:
    """The level to keep: a `.venv` made for the tests stays one."""
    return "dev" if "dev" in (level, stamp.get("level")) else "base"


def has_nvidia() -> bool:
    """Whether this machine seems to have an NVIDIA GPU with its driver."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def torch_choices(lock: Path, platform: str, nvidia: bool) -> list[str]:
    """The torch requirements to try in turn: without an NVIDIA GPU the small CPU build first, if an index has it."""
    line = next(row for row in lock.read_text(encoding="utf-8").splitlines() if row.startswith("torch=="))
    return [line + "+cpu", line] if platform.startswith("linux") and not nvidia else [line]


def run_logged(command: Sequence[str], log: Path) -> int:
    """Run a command with its output appended to `log`; the elapsed time is shown on a terminal."""
    environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    start = time.monotonic()
    with log.open("a", encoding="utf-8") as stream:
        stream.write("\n$ " + " ".join(command) + "\n")
        stream.flush()
        with subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environ, cwd=ROOT) as process:
            while process.poll() is None:
                time.sleep(0.2)
                if sys.stdout.isatty():
                    print(f"\r    {time.monotonic() - start:4.0f} s", end="\r", flush=True)
    return process.returncode


def pip_failed(log: Path) -> SetupError:
    """The error for a pip that failed: its last lines and what to do."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    tail = "\n".join("    " + line[:300] for line in errors[-8:])
    return SetupError(
        f"pip could not install the requirements:\n{tail}\nThe whole output is in {log}. "
        "Check the network (or the package index pip is set to) and the free disk space, then run this again."
    )


def fill(python: str, version: tuple[int, int], level: str) -> None:
    """Install the lists into the `.venv` whose interpreter is `python`. Raises SetupError."""
    files, log = lock_files(version, level), VENV / "install.log"
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    name = "newest" if version >= NEWEST else level
    size = SIZES[name] + (f" and {SIZES['cuda']} for CUDA" if has_nvidia() else "")
    print(f"Installing packages into {VENV} (once: a download of about {size}, a minute or a few) ...")
    for choice in torch_choices(files[0], sys.platform, has_nvidia()):
        if run_logged([*pip, choice, "-c", str(files[0])], log) == 0:
            break
        if choice.endswith("+cpu"):
            print(
                f"  No CPU-only build of torch in your package index: taking the full one ({SIZES['cuda']} more).\n"
                "  PyTorch's own CPU index, given to pip as PIP_EXTRA_INDEX_URL, avoids that."
            )
    else:
        raise pip_failed(log)
    lists = [word for path in files for word in ("-r", str(path))]
    if run_logged([*pip, "--no-deps", *lists], log) != 0:
        raise pip_failed(log)


def ensure_venv(level: str) -> Path:
    """The interpreter of a `.venv` that has everything `level` needs, made or mended if necessary."""
    stamp, python = read_stamp(VENV), venv_python(VENV)
    works = python.exists() and probe([str(python)]) is not None
    todo = plan(stamp, works, level)
    if todo == "nothing":
        return python
    start = time.monotonic()
    if todo == "make":
        found = choose(candidates(os.environ))
        print(f"Making {VENV} with Python {found.version[0]}.{found.version[1]} ({' '.join(found.command)})")
        shutil.rmtree(VENV, ignore_errors=True)
        VENV.mkdir(parents=True, exist_ok=True)
        write_stamp(VENV, {"state": "making"})
        if run_logged([*found.command, "-m", "venv", str(VENV)], VENV / "install.log") != 0:
            raise pip_failed(VENV / "install.log")
        version = found.version
    else:
        level, version = wider(level, stamp), (stamp["version"][0], stamp["version"][1])
        write_stamp(VENV, {**stamp, "hash": ""})
    fill(str(python), version, level)
    ready = {"state": "ready", "version": list(version), "level": level, "hash": fingerprint(version, level)}
    write_stamp(VENV, ready)
    print(f"Set up in {time.monotonic() - start:.0f} s.\n", flush=True)
    return python


def again(python: Path, arguments: Sequence[str]) -> int:
    """Run this file again inside the `.venv` and give its exit code."""
    environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environ.update(PYTHONNOUSERSITE="1", LORAKIT_INSIDE="1")
    command = [str(python), str(ROOT / "run.py"), *arguments]
    sys.stdout.flush()
    if os.name != "nt":
        os.execve(command[0], command, environ)
    return subprocess.run(command, env=environ, check=False).returncode


def checks(pytest_arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """What `test` runs, in order: a name and a command each."""
    python = sys.executable
    contracts = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    return [
        ("lint", [python, "-m", "ruff", "check", "."]),
        ("format", [python, "-m", "ruff", "format", "--check", "."]),
        ("types", [python, "-m", "mypy"]),
        ("imports", [python, "-c", contracts]),
        ("tests", [python, "-m", "pytest", *pytest_arguments]),
    ]


def run_checks(steps: Sequence[tuple[str, list[str]]]) -> int:
    """Run the steps until one fails; print a summary; the exit code of the one that failed, else 0."""
    environ = {"HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1", **os.environ}
    summary, code = [], 0
    for name, command in steps:
        print(f"\n== {name}", flush=True)
        start = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode
        summary.append(f"{name} {'ok' if code == 0 else f'FAILED ({code})'} {time.monotonic() - start:.0f} s")
        if code:
            break
    summary += [f"{name} not run" for name, _ in steps[len(summary) :]]
    print("\n" + ", ".join(summary), flush=True)
    return code


def parser() -> argparse.ArgumentParser:
    """The parser of the three commands."""
    top = argparse.ArgumentParser(prog="run.py", description="Set up once, then run sd-webui-lorakit without a webui.")
    commands = top.add_subparsers(dest="command", required=True, metavar="demo | ui | test")
    demo = commands.add_parser("demo", help="train a network on a few pictures and compare with and without it")
    demo.add_argument("--photos", type=Path, metavar="DIR", help="your own pictures (default: drawings)")
    demo.add_argument("--class", dest="class_word", metavar="WORD", help="what your pictures show, e.g. dog")
    demo.add_argument("--checkpoint", type=Path, metavar="FILE", help="an SD1.x checkpoint (default: the miniature)")
    demo.add_argument("--out", type=Path, metavar="DIR", default=Path("outputs/demo"), help="where the results go")
    ui = commands.add_parser("ui", help="serve the page on 127.0.0.1")
    ui.add_argument("--port", type=int, default=7866)
    ui.add_argument("--checkpoint", type=Path, metavar="FILE", help="an SD1.x checkpoint (default: the miniature)")
    ui.add_argument("--networks", type=Path, metavar="DIR", default=Path("outputs/networks"))
    ui.add_argument("--api", action="store_true", help="let programs of this machine train by HTTP: docs/api.md")
    commands.add_parser("test", help="lint, types, import contracts and tests; further arguments go to pytest")
    return top


def inside(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Do the work, in the `.venv`."""
    if args.command == "test":
        return run_checks(checks(rest))
    sys.path.insert(0, str(ROOT))
    from lib_lora.errors import LoraError

    try:
        if args.command == "ui":
            from lib_lora.standalone.server import serve

            serve(args.port, args.checkpoint, args.networks, api=args.api)
            return 0
        from lib_lora.standalone.demo import run_demo

        return run_demo(args.photos, args.class_word, args.checkpoint, args.out)
    except LoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def main(argv: Sequence[str]) -> int:
    """Set up if needed, then do what was asked; returns the exit code."""
    top = parser()
    args, rest = top.parse_known_args(argv)
    if rest and args.command != "test":
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if os.environ.get("LORAKIT_INSIDE") == "1":
            return inside(args, rest)
        return again(ensure_venv("dev" if args.command == "test" else "base"), argv)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if os.environ.get("LORAKIT_INSIDE") == "1":
            raise
        print(f"error: {VENV} cannot be made or used ({error}); put this folder where you may write", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
