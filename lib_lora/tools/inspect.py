"""What a network file holds, from its header and its alphas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lib_lora.files.codec import base_version, read_outline
from lib_lora.files.hashes import file_hashes
from lib_lora.files.tensors import read_header


def inspect(path: str | Path) -> dict[str, Any]:
    """A plain dict, ready for JSON; counts are by layer. Raises BadFile or UnknownFormat.

    `hashes.addnet` is the webui's hash of the file, `hashes.sha256` that by which sites find it.
    """
    path = Path(path)
    network = read_outline(path)
    header, hashes = read_header(path), file_hashes(path)
    layers = network.layers.values()
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "base_version": base_version(network),
        "dialect": network.dialect,
        "types": _count(layer.kind for layer in layers),
        "parts": network.parts(),
        "layers": len(network.layers),
        "ranks": _count(layer.rank for layer in layers),
        "alphas": _count(layer.alpha for layer in layers),
        "dtypes": _count(info.dtype for info in header.tensors.values()),
        "unknown": list(network.unknown),
        "metadata": dict(network.metadata),
        "hashes": {"addnet": hashes.data, "sha256": hashes.whole},
    }


def _count(values: Iterable[object]) -> dict[str, int]:
    """`{value: how often}`, most frequent first; keys are text, as JSON wants them."""
    return {f"{value:g}" if isinstance(value, float) else str(value): n for value, n in Counter(values).most_common()}
