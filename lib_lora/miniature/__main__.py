"""`python -m lib_lora.miniature build | judge | export`: make it, score it, put it before a webui."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from lib_lora.errors import LoraError
from lib_lora.miniature.place import checkpoint_path, export


def main() -> int:
    """Run one of the three commands; 0 on success, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m lib_lora.miniature", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="train it from the seed (hours on two cores)")
    make.add_argument("--work", type=Path, default=Path("build-miniature"), help="folder for the stages")
    make.add_argument("--out", type=Path, default=checkpoint_path())
    make.add_argument("--threads", type=int, default=2)
    score = commands.add_parser("judge", help="draw the held-out prompts and count what is right")
    score.add_argument("--checkpoint", type=Path, default=checkpoint_path())
    score.add_argument("--count", type=int, default=200)
    score.add_argument("--steps", type=int, default=20)
    score.add_argument("--cfg", type=float, default=4.0)
    score.add_argument("--sheet", type=Path, help="write the pictures as one PNG")
    score.add_argument("--json", action="store_true")
    put = commands.add_parser("export", help="copy checkpoint, .yaml and CLIP folder into a webui's model folder")
    put.add_argument("folder", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        if args.command == "build":
            from lib_lora.miniature.build import build

            build(args.work, args.out, args.threads)
        elif args.command == "judge":
            from lib_lora.miniature.exam import examine

            result = examine(args.checkpoint, args.count, args.steps, args.cfg, args.sheet)
            print(json.dumps(result) if args.json else result["text"])
        else:
            print(export(args.folder))
    except LoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
