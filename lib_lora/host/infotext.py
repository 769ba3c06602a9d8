"""Infotext's list of network hashes: written under a picture, and read again when the text is pasted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

FIELD = "Lora hashes"
PROMPTS = ("Prompt", "Negative prompt", "Hires prompt", "Hires negative prompt")
CUT = str.maketrans("", "", ":,")  # signs that the list is divided by
_TAG = re.compile(r"<(lora|lyco):([^:>]+)")
NameOf = Callable[[str, str], "str | None"]


def add_hashes(p: Any, names: Iterable[str], hash_of: Callable[[str], str]) -> None:
    """Write `Lora hashes` as the built-in does, those of the first pass included when this is the hires pass."""
    if not getattr(p, "is_hr_pass", False) or not hasattr(p, "lora_hashes"):
        p.lora_hashes = {}
    for name in names:
        digest = hash_of(name)
        if digest:
            p.lora_hashes[name.translate(CUT)] = digest
    if p.lora_hashes:
        p.extra_generation_params[FIELD] = ", ".join(f"{name}: {digest}" for name, digest in p.lora_hashes.items())
    else:
        p.extra_generation_params.pop(FIELD, None)  # of the batch before


def read_hashes(text: str) -> dict[str, str]:
    """`a: 123, b: 456` as {"a": "123", "b": "456"}."""
    pairs = (item.rpartition(":") for item in text.split(","))
    return {name.strip(): digest.strip() for name, _, digest in pairs if name.strip() and digest.strip()}


def restore_names(fields: MutableMapping[str, Any], name_of: NameOf) -> None:
    """Let the tags of pasted prompts name the files that had the hashes: files may be called otherwise here.

    `name_of(hash, name)` gives the name of a file here, or None to leave the tag. The built-in does the same for the
    prompt alone, and not for names with commas; where it was first, its names are not in the list any more.
    """
    hashes = read_hashes(str(fields.get(FIELD) or ""))
    if not hashes:
        return

    def renamed(found: re.Match[str]) -> str:
        kind, name = found.groups()
        digest = hashes.get(name) or hashes.get(name.translate(CUT).strip())
        return f"<{kind}:{(digest and name_of(digest, name)) or name}"

    for field in PROMPTS:
        if isinstance(fields.get(field), str):
            fields[field] = _TAG.sub(renamed, fields[field])
