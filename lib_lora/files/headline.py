"""What a list of networks shows of a file, from a quick look at its header: a folder may hold twelve thousand.

A full reading parses every entry. Here the metadata are parsed, entries are counted by their endings, and the base
version is told from a few layers. `codec.read_network` says in full, and surely, what a file holds.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from lib_lora.errors import BadFile
from lib_lora.files import torch_files
from lib_lora.files.header import opened, read_exactly
from lib_lora.files.tensors import faults_of, read_header
from lib_lora.keys import cloneofsimo, formats, versions
from lib_lora.keys.layer_key import LayerKey

Shape = tuple[int, ...]
_QUICK = 8 << 20  # longer headers are read in full
_WINDOWS, _WINDOW = 12, 700  # bytes of a header that hold some layers
_METADATA = re.compile(rb'\s*\{\s*"__metadata__"\s*:\s*')
_ENTRY = re.compile(rb'"([^"\\]{1,500})"\s*:\s*\{[^{}]{0,200}?"shape"\s*:\s*\[([\d, \t\r\n]{0,100})\]')
_END = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d+)\s*\]')
_CROSS = (b"attn2_to_k", b"attn2.to_k", b"attn2.processor")  # widths that tell SD1, SD2 and SDXL apart
_HASH = re.compile(r"[0-9a-f]{64}")
# Endings of names of which each layer has one.
_ENDINGS = (
    *((f"{name}.weight", "lora") for name in (".lora_down", "_lora.down", ".lora.down", "_layer.down", ".lora_A")),
    (".lora_A.default.weight", "lora"),
    (":down", "lora"),
    (".hada_w1_a", "loha"),
    (".lokr_w1", "lokr"),
    (".lokr_w1_a", "lokr"),
    (".oft_blocks", "oft"),
    (".oft_diag", "oft"),
    (".oft_R.weight", "oft"),
    (".a1.weight", "glora"),
    (".on_input", "ia3"),
    (".diff", "full"),
    (".set_weight", "full"),
    (".w_norm", "norm"),
)


@dataclass(frozen=True, slots=True)
class Headline:
    """`alias` is the name a file was trained under, `version` the base model's as in `keys.versions`.

    `kind` is the most frequent type and `layers` the number of layers; both are guesses by names. `stated_hash` is
    the webui's hash as the metadata have it. `fault` tells why a file cannot be read; then the rest is empty.
    """

    alias: str = ""
    version: str = versions.UNKNOWN
    kind: str = ""
    layers: int = 0
    stated_hash: str = ""
    fault: str = ""


def read_headline(path: str | Path) -> Headline:
    """The headline of a file. Never raises for what the file holds."""
    path = Path(path)
    try:
        file, size = opened(path)
        with file, faults_of(path):
            quick = _quick(file, size)
        return quick if quick is not None else _full(path)
    except BadFile as error:
        return Headline(fault=str(error))


def _quick(file: BinaryIO, size: int) -> Headline | None:
    """From the raw header; None if that is not of the usual form, or looks damaged."""
    head = bytes(read_exactly(file, 0, min(size, 9)))
    if len(head) < 9 or torch_files.speaks(head):
        return None
    (length,) = struct.unpack("<Q", head[:8])
    if length > min(_QUICK, size - 8):
        return None
    raw = bytes(read_exactly(file, 8, length))
    about = _metadata(raw)
    if about is None:
        return None
    metadata, start = about
    ends = _END.findall(raw, max(start, len(raw) - 400))
    if not ends or int(ends[-1]) > size - 8 - length:
        return None
    return _headline(metadata, _sample(raw, start), raw)


def _full(path: Path) -> Headline:
    header = read_header(path)
    names = "".join(f'{name}"' for name in header.tensors)
    return _headline(header.metadata, header.shapes(), names.encode("utf-8"))


def _headline(metadata: Mapping[str, str], shapes: Mapping[str, Shape], text: bytes) -> Headline:
    """`shapes` are those of some tensors, `text` has the names of all, each before a quote."""
    counted: Counter[str] = Counter()
    seen = "\n".join([*shapes, ""])
    for ending, kind in _ENDINGS:
        if f"{ending}\n" in seen:
            counted[kind] += text.count(f'{ending}"'.encode())
    stated = metadata.get("sshs_model_hash", "")
    return Headline(
        alias=metadata.get("ss_output_name", ""),
        version=_version(shapes),
        kind=max(counted, key=lambda kind: counted[kind], default=""),
        layers=sum(counted.values()),
        stated_hash=stated if _HASH.fullmatch(stated) else "",
    )


def _version(shapes: Mapping[str, Shape]) -> str:
    layers: dict[LayerKey, dict[str, Shape]] = {}
    unknown: list[str] = []
    if any(map(cloneofsimo.speaks, shapes)):  # there a name alone says nothing
        reading = formats.place(shapes)
        layers = {key: {tensor: shapes[n] for tensor, n in names.items()} for key, names in reading.layers.items()}
    else:
        for name, shape in shapes.items():
            placed = _parse(name)
            if placed is None:
                unknown.append(name)
            else:
                layers.setdefault(placed.key, {})[placed.tensor] = shape
    return next(iter(versions.candidates(layers, unknown)), versions.UNKNOWN)


@lru_cache(maxsize=8192)  # thousands of files have the same layers
def _parse(name: str) -> formats.Placed | None:
    return formats.parse(name)


def _metadata(raw: bytes) -> tuple[dict[str, str], int] | None:
    """The metadata, and where in `raw` the tensors begin; None if they are not where writers put them."""
    found = _METADATA.match(raw)
    if found is None:
        return None if b'"__metadata__"' in raw else ({}, 0)
    try:
        text = raw.decode("utf-8")
        metadata, end = json.JSONDecoder().raw_decode(text, found.end())
    except (ValueError, RecursionError):
        return None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        return None
    return metadata, end if text.isascii() else len(text[:end].encode("utf-8"))


def _sample(raw: bytes, start: int) -> dict[str, Shape]:
    """Shapes of some tensors: spread over the header, and of the first cross-attention layers."""
    steps = max(1, (len(raw) - start) // _WINDOWS)
    places = list(range(start, len(raw), steps))
    for mark in _CROSS:
        if (place := raw.find(mark, start)) >= 0:
            places.append(max(start, place - 100))
            break
    found: dict[str, Shape] = {}
    for place in places:
        for name, numbers in _ENTRY.findall(raw, place, place + _WINDOW):
            if name.isascii():
                found[name.decode()] = tuple(map(int, numbers.replace(b",", b" ").split()))
    return found
