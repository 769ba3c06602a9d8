"""The name of a job: what its files are called by in a prompt, whether they are free, and the next name that is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from lib_lora.train.config import JobConfig
from lib_lora.train.methods.base import CHECKPOINT, Product
from lib_lora.train.methods.registry import method_of

ENDINGS = (".safetensors", ".pt", ".ckpt")


class Names:
    """Names for one job, its files and folders as its method has them. Folders are read once, when first asked for."""

    def __init__(self, job: JobConfig) -> None:
        self._job = job
        self._files: Callable[[str], list[Path]] = lru_cache(maxsize=None)(files_in)

    def products(self, name: str) -> tuple[Product, ...]:
        """The files of the job, were it called so."""
        job = replace(self._job, output=replace(self._job.output, name=name))
        return method_of(job.method.name).products(job, name)

    def tags(self, name: str) -> str:
        """What a prompt says to use them all; "" for a checkpoint alone."""
        return " ".join(filter(None, (product.tag() for product in self.products(name))))

    def checkpoint(self, name: str) -> str:
        """The file of the checkpoint that is made, "" if none is."""
        return next((product.name for product in self.products(name) if product.place == CHECKPOINT), "")

    def taken(self, name: str) -> str:
        """A file of that name where one of these would go, "" if all are free. Case is not told apart everywhere."""
        return next(filter(None, map(self._there, self.products(name))), "")

    def free(self, name: str) -> str:
        """The name, or with -2, -3, ... the first of which nothing is there that goes by it.

        Files that are called by their words stay as they are, whatever the name.
        """
        found, number = name, 1
        stem = re.sub(r"-\d+$", "", name)
        fixed = set(self.products(name)) & set(self.products(f"{name}-2"))
        while any(self._there(product) for product in self.products(found) if product not in fixed):
            number += 1
            found = f"{stem}-{number}"
        return found

    def _there(self, product: Product) -> str:
        stem = Path(product.name).stem.casefold()
        paths = self._files(product.target_folder(self._job))
        return next((path.name for path in paths if path.stem.casefold() == stem), "")


def files_in(folder: str) -> list[Path]:
    """The model files right in a folder; none if it cannot be read."""
    try:
        return [path for path in Path(folder).expanduser().iterdir() if path.suffix in ENDINGS] if folder else []
    except (OSError, ValueError, RuntimeError):
        return []
