"""A library of many network files: how long until it can be used, and what a look-up costs.

    python -m benchmarks.library [--files 12000] [--folders 120] [--where FOLDER]

Makes the files in a temporary folder: real headers (60 % as kohya writes them for SD1, 30 % for SDXL, 10 % small) with
metadata of a few kilobytes, and holes instead of weights, so that 12,000 take about 2 GB. "Beside it" is what a program
does that parses the header of every file, in the way the webui's built-in extension does at its first start.
The files were just written, so they come from memory, not from a disk: a cold disk adds its own time to both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lib_lora.errors import NetworkNotFound
from lib_lora.files.hashes import file_hashes
from lib_lora.files.library import NetworkLibrary
from lib_lora.keys.checkpoint import default_targets
from lib_lora.keys.layer_key import LayerKey


def layers(kind: str) -> list[str]:
    """Layer names of a file."""
    paths = [f"lora_{prefix}_{LayerKey(part, p).flat}" for part, prefix in PARTS for p in default_targets(part)]
    if kind == "small":
        return paths[:16]
    if kind == "sd1":
        return paths
    deep = [f"lora_unet_input_blocks_{b}_1_transformer_blocks_{d}_{a}" for b in (7, 8) for d in range(10) for a in ENDS]
    outs = "lora_unet_output_blocks"
    deep += [f"{outs}_{b}_1_transformer_blocks_{d}_{a}" for b in range(3) for d in range(10) for a in ENDS]
    texts = [f"lora_te2_text_model_encoder_layers_{i}_{a}" for i in range(32) for a in TEXTS]
    return [name.replace("lora_te_", "lora_te1_") for name in paths if name.startswith("lora_te_")] + texts + deep


PARTS = (("te1", "te"), ("unet", "unet"))
TEXTS = ("mlp_fc1", "mlp_fc2", *(f"self_attn_{x}_proj" for x in ("k", "out", "q", "v")))
ENDS = ("ff_net_0_proj", "ff_net_2", *(f"attn{i}_to_{x}" for i in (1, 2) for x in ("k", "out_0", "q", "v")))
WIDTHS = {"sd1": 768, "sdxl": 2048, "small": 1024}


def header(kind: str) -> tuple[str, int]:
    """The entries of a header as JSON without the opening brace, and how many bytes the weights have."""
    entries: dict[str, object] = {}
    position = 0
    for name in layers(kind):
        width = WIDTHS[kind] if "attn2_to_k" in name or "attn2_to_v" in name else 1280
        for ending, shape in ((".alpha", []), (".lora_down.weight", [32, width]), (".lora_up.weight", [1280, 32])):
            size = 2 * (shape[0] * shape[1] if shape else 1)
            place = [position, position + size]
            entries[name + ending] = {"dtype": "F16", "shape": shape, "data_offsets": place}
            position += size
    return json.dumps(entries, separators=(",", ":"))[1:], position


def make(root: Path, files: int, folders: int) -> int:
    """Write the files; returns the bytes of all headers."""
    draw = random.Random(0)
    headers = {kind: header(kind) for kind in WIDTHS}
    total = 0
    for i in range(files):
        kind = "sd1" if i % 10 < 6 else "sdxl" if i % 10 < 9 else "small"
        tags = {f"tag {draw.randrange(10**6)}": draw.randrange(100) for _ in range(120)}
        about = {"ss_output_name": f"trained name {i}", "ss_tag_frequency": json.dumps({"10_x": tags})}
        text, size = headers[kind]
        raw = (f'{{"__metadata__":{json.dumps(about)},' + text).encode()
        folder = root / f"folder {i % folders}"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"network {i}.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(raw)) + raw)
            file.truncate(8 + len(raw) + size)
        total += len(raw)
    return total


def parse_all(root: Path) -> None:
    """Parse every header and every table in its metadata."""
    for path in sorted(root.rglob("*.safetensors")):
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            content = json.loads(file.read(length))
        for value in content.get("__metadata__", {}).values():
            if value.startswith("{"):
                json.loads(value)


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def look_ups(library: NetworkLibrary, names: list[str]) -> tuple[float, float]:
    """Median and 99th percentile of finding each name, in microseconds."""
    spans = [timed(lambda name=name: library.find(name)) * 1e6 for name in names]  # type: ignore[misc]
    return statistics.median(spans), sorted(spans)[int(len(spans) * 0.99)]


def measure(root: Path, cache: Path, files: int) -> None:
    """Print the table."""
    rows: list[tuple[str, float]] = []
    rows.append(("beside it: parse every header", timed(lambda: parse_all(root))))
    library = NetworkLibrary([root], cache)
    rows.append(("first start: all names", timed(library.names)))
    rows.append(("first start: all headers, kept on disk", timed(lambda: library.find("trained name 7"))))
    again: list[NetworkLibrary] = []

    def start() -> None:
        again.append(NetworkLibrary([root], cache))
        again[0].names()
        again[0].find("trained name 8")

    rows.append(("later start: names and aliases", timed(start)))
    library = again[0]
    rows.append(("entries(), nothing changed", min(timed(library.entries) for _ in range(5))))
    folder = next(root.iterdir())
    (folder / "new.safetensors").write_bytes(next(folder.glob("*.safetensors")).read_bytes())
    rows.append(("entries(), one file new", timed(library.entries)))
    (folder / "new.safetensors").unlink()
    rows.append(("a name that is not there", min(timed(lambda: missing(library)) for _ in range(3))))
    print(f"{len(library.entries())} files, cache of {cache.stat().st_size / 1e6:.1f} MB")
    for name, seconds in rows:
        print(f"{name:42} {seconds * 1000:10.1f} ms")
    time.sleep(2.1)  # a folder changed just now is looked at again and again for two seconds
    library.entries()
    draw = random.Random(1)
    numbers = [draw.randrange(files) for _ in range(3000)]
    folders = len(list(root.iterdir()))
    kinds = {
        "find(name)": [f"network {i}" for i in numbers],
        "find(relative path)": [f"folder {i % folders}/network {i}" for i in numbers],
        "find(alias)": [f"trained name {i}" for i in numbers],
    }
    for name, names in kinds.items():
        median, late = look_ups(library, names)
        print(f"{name:42} {median:10.1f} us    99 of 100 within {late:.1f} us")
    whole = max(root.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    print(f"{'hashing':42} {whole.stat().st_size / timed(lambda: file_hashes(whole)) / 1e6:10.1f} MB/s")


def missing(library: NetworkLibrary) -> None:
    """Ask for what is not there."""
    with contextlib.suppress(NetworkNotFound):
        library.find("no such network")


def main() -> None:
    """Make the files, measure, remove them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=12_000)
    parser.add_argument("--folders", type=int, default=120)
    parser.add_argument("--where", type=Path, default=None, help="make the temporary folder in here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.where) as where:
        root = Path(where, "networks")
        total = make(root, args.files, args.folders)
        print(f"{total / 1e6:.0f} MB of headers")
        time.sleep(2.1)
        measure(root, Path(where, "index.json"), args.files)


if __name__ == "__main__":
    main()
