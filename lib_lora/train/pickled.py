"""The webui's older .pt files: torch.save's zip, with none but the records that the webui's check for malice takes."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lib_lora.files.tensors import atomic_file

# Newer torch adds records of its own, for which the webui refuses the whole file; no torch needs them to read it.
KNOWN = re.compile(r"[^/]+/(data\.pkl|data/\d+|version|byteorder)")


def write_pickled(path: Path, record: Mapping[Any, Any]) -> None:
    """Write a record of plain values and tensors; equal ones give equal bytes. Raises BadFile."""
    whole = io.BytesIO()
    torch.save(record, whole)
    with atomic_file(path) as file, zipfile.ZipFile(whole) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            if KNOWN.fullmatch(name):
                target.writestr(zipfile.ZipInfo(name), source.read(name))
