"""Token embeddings that a network file brings along: `{token: {encoder: name in the file}}`.

`CLIP_L` are vectors for the first text encoder (SD1's and SDXL's CLIP-L, and SD2's, whatever is inside), `CLIP_G` for
SDXL's second. Dialects: the webui's and OneTrainer's `bundle_emb.TOKEN.clip_l`, `.clip_g` or `.string_to_param.*`, and
cloneofsimo's tensors, of which the metadata says `<embed>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

CLIP_L, CLIP_G = "clip_l", "clip_g"
_CLONEOFSIMO = "<embed>"
_BUNDLED = re.compile(r"bundle_emb\.(?P<token>.+?)\.(?:(?P<encoder>clip_l|clip_g)|string_to_param\.[^.]+)")
Shape = tuple[int, ...]


def find(names: Mapping[str, Shape], metadata: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The bundled embeddings among a file's tensors. A tensor that cannot be vectors is left alone."""
    found: dict[str, dict[str, str]] = {}
    for name, shape in names.items():
        if len(shape) not in (1, 2):
            continue
        if metadata.get(name) == _CLONEOFSIMO:
            token, encoder = name, CLIP_L
        elif bundled := _BUNDLED.fullmatch(name):
            token, encoder = bundled["token"], bundled["encoder"] or CLIP_L
        else:
            continue
        found.setdefault(token, {}).setdefault(encoder, name)
    return found


def bundled_name(token: str, encoder: str) -> str:
    """The name under which the webui looks for a token's vectors in a network file."""
    return f"bundle_emb.{token}.{encoder}"
