"""`python -m lib_lora convert`: a network file in another program's dialect."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

HELP = "rewrite a network file in the naming of another program"
DIALECTS = ("kohya", "diffusers", "peft", "cloneofsimo")
_SHOWN = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a network file of any dialect")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="file to write; a folder for peft")
    parser.add_argument(
        "--to", choices=DIALECTS, required=True, help="whose naming: kohya is the webui's and ComfyUI's too"
    )
    parser.add_argument("--partial", action="store_true", help="leave out, and list, layers that have no place there")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Convert, and tell what was written and what was not."""
    from lib_lora.tools.convert import ConvertJob, convert

    report = convert(ConvertJob(args.file, args.out, args.to, args.partial))
    if args.json:
        print(json.dumps(asdict(report), default=str, ensure_ascii=False))
        return 0
    for line in report.skipped[:_SHOWN]:
        print(f"left out: {line}")
    if len(report.skipped) > _SHOWN:
        print(f"left out: {len(report.skipped) - _SHOWN} more")
    for token in report.embeddings:
        print(f"left out: the embedding {token!r}, for which {args.to} has no place")
    print(f"{report.layers} layers written: {', '.join(map(str, report.files))}")
    return 0
