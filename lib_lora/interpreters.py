"""Finds the Python that run.py makes its `.venv` from. Standard library only; runs on Python 3.8 and newer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

KNOWN = ((3, 11), (3, 10))  # the versions that the first lock has wheels for, best first
NEWEST = (3, 12)  # from here on the second lock, requirements/newest.txt


class SetupError(Exception):
    """What stops the set-up, in words the user can act on."""


class Interpreter(NamedTuple):
    """A command that starts a Python, and its version."""

    command: list[str]
    version: tuple[int, int]


def candidates(environ: Mapping[str, str]) -> Iterator[list[str]]:
    """Commands that may start a suitable Python, the preferred ones first."""
    if environ.get("LORAKIT_PYTHON"):
        yield [environ["LORAKIT_PYTHON"]]
        return
    yield [sys.executable]
    for major, minor in KNOWN:
        yield [f"python{major}.{minor}"]
        if os.name == "nt":
            yield ["py", f"-{major}.{minor}"]
        for base in filter(None, (environ.get("PYENV_ROOT"), str(Path.home() / ".pyenv"))):
            for folder in sorted(Path(base, "versions").glob(f"{major}.{minor}.*"), reverse=True):
                yield [str(folder / "bin" / "python")]
    for name in ("python3.12", "python3.13", "python3.14"):
        yield [name]


def probe(command: Sequence[str]) -> tuple[int, int] | None:
    """The version of the Python this command starts; None if it starts none, or one that cannot make a venv."""
    code = "import sys, venv, ensurepip; print(sys.version_info[0], sys.version_info[1])"
    try:
        done = subprocess.run([*command, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = done.stdout.split()
    if done.returncode != 0 or len(words) != 2:
        return None
    return int(words[0]), int(words[1])


def choose(
    commands: Iterable[list[str]], ask: Callable[[Sequence[str]], tuple[int, int] | None] = probe
) -> Interpreter:
    """The first 3.11 or 3.10 among `commands`, else the first that is newer. Raises SetupError if there is none."""
    newer: Interpreter | None = None
    tried: list[str] = []
    for command in commands:
        version = ask(command)
        tried.append(" ".join(command))
        if version in KNOWN:
            return Interpreter(command, version)
        if newer is None and version is not None and version >= NEWEST:
            newer = Interpreter(command, version)
    if newer is not None:
        return newer
    raise SetupError(
        "no usable Python found (tried: " + ", ".join(dict.fromkeys(tried)) + "). Install Python 3.11 with its venv "
        "module (Debian and Ubuntu: apt install python3.11-venv; Windows and macOS: the installer of python.org), "
        "or set LORAKIT_PYTHON to one you have, and run this again."
    )
