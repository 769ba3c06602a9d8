"""`extract`: two checkpoints in, the LoRA that leads from one to the other out."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "extract a LoRA from a fine-tuned checkpoint and its base"
DTYPES = ("fp16", "bf16", "fp32")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("tuned", type=Path, metavar="TUNED", help="the fine-tuned checkpoint")
    parser.add_argument("base", type=Path, metavar="BASE", help="the checkpoint it was tuned from")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the network's file")
    parser.add_argument("--rank", type=int, default=32, help="rank of the layers (default 32)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16", help="number format (default fp16)")


def run(args: argparse.Namespace) -> int:
    """Extract, and say what a LoRA of that rank cannot hold. Raises LoraError."""
    from lib_lora.errors import BadConfig
    from lib_lora.tools.extract import extract
    from lib_lora.train.network_file import DTYPES as TYPES

    if args.rank < 1:
        raise BadConfig(f"--rank {args.rank} is not accepted; give a whole number of at least 1")
    found = extract(args.tuned, args.base, args.out, args.rank, TYPES[args.dtype])
    print(f"{args.out}: {len(found.network.layers)} layers of rank {args.rank}")
    print(f"residual: {found.residual:.1%} of the change is not in it ({found.left_out} norms and biases left out)")
    return 0
