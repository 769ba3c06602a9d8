"""`ui`: the page without a webui."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "serve the page on 127.0.0.1: generate pictures, train networks"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--port", type=int, default=7866)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="the base model (default: the miniature)")
    parser.add_argument("--networks", type=Path, metavar="DIR", default=Path("outputs/networks"))
    parser.add_argument("--runs", type=Path, metavar="DIR", default=Path("outputs/runs"), help="where runs are kept")
    parser.add_argument("--api", action="store_true", help="let programs of this machine train by HTTP: docs/api.md")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted. Raises BadConfig for a port that is taken, BadFile for a checkpoint."""
    from lib_lora.standalone.server import serve

    serve(args.port, args.checkpoint, args.networks, args.runs, api=args.api)
    return 0
