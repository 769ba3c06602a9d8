"""The webui's hook before it reads its command line. Standard library only.

`--lora-dir` and `--lyco-dir-backcompat` belong to the built-in Lora extension, whose own hook runs after this one even
where that is disabled. Only where it was deleted they are missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

BUILTIN = ("Lora", "sd_forge_lora")  # the webui's, Forge's
OPTIONS = {
    "--lora-dir": ("Lora", "Path to directory with Lora networks."),
    "--lyco-dir-backcompat": ("LyCORIS", "Path to directory with LyCORIS networks."),
}


def preload(parser: argparse.ArgumentParser) -> None:
    """Add the options that nobody else will."""
    from modules import paths_internal

    folder = Path(paths_internal.extensions_builtin_dir)
    if any((folder / name / "preload.py").is_file() for name in BUILTIN):
        return
    taken = {name for action in parser._actions for name in action.option_strings}
    for option, (name, text) in OPTIONS.items():
        if option not in taken:
            default = str(Path(paths_internal.models_path) / name)
            parser.add_argument(option, type=_absolute, default=default, help=text)


def _absolute(path: str) -> str:
    return str(Path(path).absolute())
