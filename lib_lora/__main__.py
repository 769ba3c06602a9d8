"""The command line. Exit codes: 0 done, 2 bad input (one clear line on stderr), 130 interrupted."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from lib_lora import __version__
from lib_lora.errors import LoraError

COMMANDS = ("train", "generate", "ui", "merge", "extract", "hypernet", "convert", "inspect")


class _Parser(argparse.ArgumentParser):
    """Tells a bad argument in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The parser with every command's options."""
    top = _Parser(prog="python -m lib_lora", description="Apply and train LoRA / LyCORIS networks.")
    top.add_argument("--version", action="version", version=__version__)
    top.add_argument("--verbose", action="store_true", help="show the log")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"lib_lora.cli.{name}")
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.configure(sub)
        sub.set_defaults(run=module.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        return int(args.run(args) or 0)
    except LoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
