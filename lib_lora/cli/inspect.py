"""`python -m lib_lora inspect`: what network files hold."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lib_lora.errors import LoraError

HELP = "show types, ranks, parts, base model, metadata and hashes of network files"
_WIDTH = 100


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="network files (.safetensors)")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per file")


def run(args: argparse.Namespace) -> int:
    """Show every file; a bad one is named on stderr and makes the exit code 2, the others are still shown."""
    from lib_lora.tools.inspect import inspect

    shown: list[dict[str, Any]] = []
    failed = False
    for path in args.files:
        try:
            shown.append(inspect(path))
        except LoraError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    if args.json:
        print(json.dumps(shown, ensure_ascii=False, indent=2))
    elif shown:
        print("\n\n".join("\n".join(lines(facts)) for facts in shown))
    return 2 if failed else 0


def lines(facts: dict[str, Any]) -> list[str]:
    """One file's facts for people."""
    text = [facts["file"]]
    for name in ("base_version", "dialect", "layers", "types", "parts", "ranks", "alphas", "dtypes", "bytes", "hashes"):
        value = facts[name]
        shown = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else value
        text.append(f"  {name.replace('_', ' '):<14}{shown}")
    if facts["unknown"]:
        text.append(f"  {'unknown':<14}{len(facts['unknown'])} names, such as {', '.join(facts['unknown'][:3])}")
    for key, value in sorted(facts["metadata"].items()):
        short = value if len(value) <= _WIDTH else f"{value[:_WIDTH]}... ({len(value)} characters)"
        text.append(f"  {key} = {short}")
    return text
