"""What the webui's card shows of a finished network: the facts beside it (.json) and its picture (.png)."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora.files.tensors import atomic_file
from lib_lora.train.concepts import subjects_of
from lib_lora.train.methods.base import CHECKPOINT, NETWORK, Product

if TYPE_CHECKING:
    from lib_lora.train.session import Session

VERSIONS = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}  # as the webui's metadata editor spells them
PREFERRED = 1.0
PICTURES = tuple(f"{middle}.{kind}" for kind in ("png", "jpg", "jpeg", "webp", "gif") for middle in ("", ".preview"))
THUMBNAIL = 256  # pixels of the longer side: the file's header stays small


def write_sidecar(session: Session, product: Product, file: Path, cover: Path | None) -> None:
    """Write `<name>.json` and `<name>.png` beside a finished file; what is there already is the user's and stays."""
    facts = file.with_suffix(".json")
    if product.place == NETWORK and not facts.exists():
        with atomic_file(facts) as out:
            out.write(json.dumps(card(session), indent=4, ensure_ascii=False).encode())
    picture = file.with_suffix(".png")
    if cover is not None and not any(file.with_name(file.stem + ending).exists() for ending in PICTURES):
        with atomic_file(picture) as out, cover.open("rb") as source:
            shutil.copyfileobj(source, out)


def write_config(session: Session, product: Product, file: Path) -> None:
    """Write the base's own `<name>.yaml`, if it has one, beside a checkpoint made of it: it is loaded by that."""
    source, config = session.model.source, file.with_suffix(".yaml")
    if product.place != CHECKPOINT or source is None or config.exists():
        return
    given = source.with_suffix(".yaml")
    if given.is_file():
        with atomic_file(config) as out, given.open("rb") as file_in:
            shutil.copyfileobj(file_in, out)


def card(session: Session) -> dict[str, Any]:
    """The fields that the webui's cards and metadata editor know."""
    return {
        "description": description(session),
        "sd version": VERSIONS.get(session.model.version, "Unknown"),
        "activation text": ", ".join(triggers(session)),
        "preferred weight": PREFERRED,
        "negative text": "",
        "notes": "",
    }


def description(session: Session) -> str:
    """What was trained on what, in a line."""
    pictures = sum(not item.prior for item in session.dataset.items) if session.method.pictures else 0
    what = session.job.method.name.replace("_", " ")
    of = f"{pictures} picture{'s' if pictures != 1 else ''}, " if pictures else ""
    return f"{what}, {of}{session.plan.steps} steps on {session.model.name}"


def triggers(session: Session) -> list[str]:
    """What calls each concept in a prompt, each once: trigger and class, or else what folders `N_trigger class` say."""
    named: list[str] = []
    for subject in subjects_of(session.job):
        data, own = subject.data, [item for item in session.dataset.items if item.concept == subject.number]
        folders = [item.trigger for item in own if not item.prior]
        named += [f"{data.trigger} {data.class_word}"] if data.trigger.strip() else folders
    return list(dict.fromkeys(words for name in named if (words := " ".join(name.split()))))


def latest_sample(folder: Path) -> Path | None:
    """The last picture of the first prompt that a run drew; `folder` is the run's, or one in it."""
    found = (max((place / "samples").glob("*-0.png"), default=None) for place in (folder, folder.parent))
    return next(filter(None, found), None)


def thumbnail(picture: Path) -> str:
    """A picture made small, as a data: URL. Equal pictures give equal text."""
    from PIL import Image

    with Image.open(picture) as full:
        small = full.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    small.save(out, "jpeg", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
