"""`hypernet`: a hypernetwork of the webui in, the nearest LoRA out."""

from __future__ import annotations

import argparse
from pathlib import Path

from lib_lora.cli.extract import DTYPES

HELP = "turn a hypernetwork into a LoRA, and say what a LoRA cannot hold of it"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("file", type=Path, metavar="FILE.pt", help="the hypernetwork")
    parser.add_argument("--base", type=Path, required=True, help="the checkpoint it was trained on")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the network's file")
    parser.add_argument("--rank", type=int, default=16, help="rank of the layers (default 16)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16", help="number format (default fp16)")


def run(args: argparse.Namespace) -> int:
    """Convert, and tell the residual. Raises LoraError."""
    from lib_lora.errors import BadConfig
    from lib_lora.models.checkpoint import load_checkpoint
    from lib_lora.tools.hypernet import hypernetwork_to_lora, write_converted
    from lib_lora.train.network_file import DTYPES as TYPES

    if args.rank < 1:
        raise BadConfig(f"--rank {args.rank} is not accepted; give a whole number of at least 1")
    found = hypernetwork_to_lora(args.file, load_checkpoint(args.base), args.rank)
    write_converted(found, args.out, TYPES[args.dtype])
    worst = max(found.by_layer, key=lambda key: found.by_layer[key])
    print(f"{args.out}: {len(found.by_layer)} layers of rank {args.rank}")
    print(f"residual: {found.residual:.1%} of what the hypernetwork adds; worst {found.by_layer[worst]:.1%} in {worst}")
    return 0
