"""`python -m lib_lora merge`: networks into a checkpoint, without building the model."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

HELP = "merge networks into a checkpoint file"
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a .safetensors checkpoint: SD1, SD2, SDXL")
    parser.add_argument(
        "networks",
        nargs="+",
        metavar="NETWORK[:STRENGTH[:UNET]]",
        help="a network file; strength 1 unless given, for the UNet another if given",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT.safetensors", help="file to write")
    parser.add_argument("--dtype", choices=DTYPES, help="precision of the output; default: as in the checkpoint")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Merge, and tell what was matched."""
    import torch

    from lib_lora.tools.merge import MergeJob, merge, parse_use

    dtype = getattr(torch, DTYPES[args.dtype]) if args.dtype else None
    reports = merge(MergeJob(args.checkpoint, [parse_use(text) for text in args.networks], args.out, dtype))
    if args.json:
        print(json.dumps({"out": str(args.out), "networks": [asdict(report) for report in reports]}, default=str))
        return 0
    for report in reports:
        print(f"{report.path}: {report.matched} layers merged, {len(report.unmatched)} not in the checkpoint")
        for line in (*report.mismatched, *report.unmatched[:5], *report.unknown[:5]):
            print(f"  not merged: {line}")
    print(f"written: {args.out}")
    return 0
