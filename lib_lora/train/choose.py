"""After a run: keep the best of what it saved on the way, delete the rest, tell the card, train on from there."""

from __future__ import annotations

import filecmp
import io
import json
import math
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lora.errors import BadConfig, BadFile
from lib_lora.files.tensors import atomic_file
from lib_lora.train.config import JobConfig
from lib_lora.train.drawable import Drawable, drawable, products_of, prompted
from lib_lora.train.jobs import Run
from lib_lora.train.methods.base import EMBEDDING, NETWORK
from lib_lora.train.methods.registry import method_of

CHOICE = "choice.json"  # in the run's folder: which step is the network file now
WEIGHT, ACTIVATION = "preferred weight", "activation text"
PREVIOUS = ".previous"
CONTINUED = ("network", "lcm", "slider", "image_slider")
WHY_NOT = {
    "dreambooth": "A new run cannot begin from a whole checkpoint; load it as the base for that, or train this run on.",
    "textual_inversion": "A new run cannot begin from words; train this run on instead.",
    "hypernetwork": "A new run cannot begin from a hypernetwork; train this run on instead.",
}
WORDS_ANEW = "The words of a new run would begin anew; train this run on instead."


@dataclass(frozen=True)
class Saved:
    """What a run kept at one step: the main file first, and their size in bytes."""

    step: int
    files: tuple[Path, ...]
    size: int


def saved(run: Run, job: JobConfig, steps: Collection[int]) -> list[Saved]:
    """What is there of these steps' files in the run's checkpoints, by step. Files elsewhere are never meant."""
    found = []
    for step in sorted(steps):
        files = tuple(path for path in _checkpoint_files(run, job, step) if path.is_file() and not path.is_symlink())
        if files:
            found.append(Saved(step, files, sum(path.stat().st_size for path in files)))
    return found


def network_file(run: Run, job: JobConfig, which: int = 0) -> Path | None:
    """A run's finished file, where the job wants it or else in the run's folder; None if there is none.

    `which` of its products, the main one first. What is where the job wants it may be another run's by now: only a copy
    of the run's own is meant.
    """
    own, target = _finished(run, job)[which]
    if not own.is_file():
        return None
    copied = target is not None and target.is_file() and filecmp.cmp(own, target, shallow=False)  # asked of once
    return target if copied else own


def drawn_at(run: Run, job: JobConfig, step: int | None) -> Drawable | None:
    """What pictures can be drawn with of what was kept at a step (None: of the finished files), if anything."""
    if step is not None:
        return drawable(job, _checkpoint_files(run, job, step))
    finished = [network_file(run, job, which) for which in range(len(products_of(job)))]
    return drawable(job, [path for path in finished if path is not None]) if None not in finished else None


def tag_of(job: JobConfig) -> str:
    """What a prompt says to use what the job makes, every word of several; "" for a checkpoint alone."""
    found = products_of(job)
    if found[0].place == EMBEDDING:
        return " ".join(product.tag() for product in found)
    return found[prompted(job)].tag()


def is_network(job: JobConfig) -> bool:
    """Whether what a prompt uses is a file that a tag with a strength applies."""
    return products_of(job)[prompted(job)].place == NETWORK


def keep(run: Run, job: JobConfig, step: int, last: int) -> Path:
    """Make the files kept at `step` the run's finished ones, atomically each; the main one.

    What was the finished file stays in the checkpoints as that of step `last`, unless an equal one is there. Raises
    BadConfig if a file is missing, or another's file is in the place.
    """
    sources, finished = _checkpoint_files(run, job, step), _finished(run, job)
    for source, (_, target) in zip(sources, finished):
        if not source.is_file():
            raise BadConfig(f"{source.name!r} is no longer in {str(run.checkpoints)!r}; choose another step")
        if target is not None and os.path.lexists(target) and not run.made(target):
            raise BadConfig(f"{str(target)!r} is not this run's own file; move it away, then choose again")
    put_aside(run, job, last)
    for source, (own, target) in zip(sources, finished):
        for place in filter(None, (own, target)):  # the run's own first: by it the other is known as the run's
            _copy(source, place)
    _first_card(run, job)
    facts = finished[0][0].stat()
    with atomic_file(run.folder / CHOICE) as out:
        out.write(json.dumps({"step": step, "size": facts.st_size, "time": facts.st_mtime_ns}).encode())
    return finished[0][1] or finished[0][0]


def put_aside(run: Run, job: JobConfig, last: int) -> None:
    """Keep the finished files in the checkpoints as those of step `last`, unless equal ones are there."""
    for (own, target), spare in zip(_finished(run, job), _checkpoint_files(run, job, last)):
        copied = target if target is not None and run.made(target) else None
        _put_aside(own if own.is_file() else copied, spare)


def kept(run: Run, job: JobConfig) -> int | None:
    """The step that was chosen; None if the finished file is what training ended with, then or since."""
    try:
        choice, facts = json.loads((run.folder / CHOICE).read_bytes()), _finished(run, job)[0][0].stat()
        same = (choice["size"], choice["time"]) == (facts.st_size, facts.st_mtime_ns)
        step = choice["step"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return step if same and type(step) is int else None


def delete(files: Sequence[Path], run: Run) -> int:
    """Delete files of the run's checkpoints; how many there were. Raises BadConfig for any other file."""
    home = run.checkpoints.resolve()
    for path in files:
        if path.parent.resolve() != home or path.resolve() == run.state.resolve():
            raise BadConfig(f"{str(path)!r} is no network in {str(home)!r}; nothing was deleted")
    there = [path for path in files if path.is_file()]
    try:
        for path in there:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise BadFile(f"{path.name!r} cannot be deleted ({error.strerror}); delete it by hand") from error
    return len(there)


def read_card(file: Path) -> dict[str, Any]:
    """The card's facts beside a network file; empty if there are none. Raises BadFile if they cannot be read."""
    facts = file.with_suffix(".json")
    try:
        found = json.loads(facts.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadFile(f"{str(facts)!r} cannot be read ({error}); mend it or move it away") from error
    if not isinstance(found, dict):
        raise BadFile(f"{str(facts)!r} holds no card's facts; mend it or move it away")
    return found


def set_weight(file: Path, weight: Any) -> float:
    """Write the preferred weight into the card's facts; all other fields stay. Raises BadConfig, BadFile."""
    try:
        value = float(str(weight).strip().replace(",", "."))
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not -10 <= value <= 10:
        raise BadConfig(f"preferred weight = {weight!r} is not accepted; give a number from -10 to 10, e.g. 0.8")
    _write_card(file, {**read_card(file), WEIGHT: value})
    return value


def preview_of(file: Path) -> Path | None:
    """The card's picture, if there is one."""
    from lib_lora.train.sidecar import PICTURES

    places = (file.with_name(file.stem + ending) for ending in PICTURES)
    return next((path for path in places if path.is_file()), None)


def set_preview(file: Path, picture: Path) -> Path:
    """Make a picture the card's. Those of before are kept as `.previous.png`, `.previous-2.png`, ... Raises BadFile."""
    from PIL import Image

    target = file.with_suffix(".png")
    try:
        with Image.open(picture) as source:
            out = io.BytesIO()
            source.convert("RGB").save(out, "png")
    except (OSError, ValueError) as error:
        raise BadFile(f"{str(picture)!r} is no picture that can be read ({error}); choose another") from error
    if target.is_file() and target.read_bytes() != out.getvalue():
        _keep_previous(target)
    with atomic_file(target) as place:
        place.write(out.getvalue())
    return target


def why_not_continue(job: JobConfig) -> str:
    """Why training cannot go on from a file of this kind of run; empty if it can."""
    method = job.method.name
    return "" if method in CONTINUED else WHY_NOT.get(method, WORDS_ANEW)


def continue_settings(settings: Mapping[str, Any], file: Path, name: str, steps: Any) -> dict[str, Any]:
    """The settings of a run that goes on from a network file for so many steps, as a new network. Raises BadConfig."""
    try:
        count = int(str(steps).strip())
    except ValueError:
        raise BadConfig(f"steps = {str(steps)!r} is not accepted; give a whole number, e.g. 200") from None
    more: dict[str, Any] = {"network.continue_from": str(file), "output.name": name.strip()}
    return {**settings, **more, "training.steps": count, "training.epochs": None}


def next_name(name: str, taken: Collection[str]) -> str:
    """`name-more`, or `name-more-2`, ... : the first that is not taken."""
    first = name if name.endswith("-more") else f"{name}-more"
    numbered = (first if i == 1 else f"{first}-{i}" for i in range(1, len(taken) + 2))
    return next(one for one in numbered if one not in taken)


def _checkpoint_files(run: Run, job: JobConfig, step: int) -> list[Path]:
    products = method_of(job.method.name).products(job, f"{job.output.name}-{step:06d}")
    return [run.checkpoints / product.name for product in products]


def _finished(run: Run, job: JobConfig) -> list[tuple[Path, Path | None]]:
    """For each product: its place in the run's folder, and where the job wants a copy."""
    products = products_of(job)
    folders = [product.target_folder(job) for product in products]
    copies = [Path(os.path.expanduser(folder)) / p.name if folder else None for folder, p in zip(folders, products)]
    return [(run.folder / product.name, copy) for product, copy in zip(products, copies)]


def _put_aside(now: Path | None, spare: Path) -> None:
    """Keep a finished file under the name `spare`, unless one of the checkpoints is equal to it."""
    if now is None or not now.is_file():
        return
    others = [path for path in spare.parent.glob(f"*{spare.suffix}") if path.is_file()]
    if any(filecmp.cmp(now, other, shallow=False) for other in others):
        return
    number, place = 2, spare
    while place.exists():
        number, place = number + 1, spare.with_name(f"{spare.stem}-{number}{spare.suffix}")
    _copy(now, place)


def _keep_previous(picture: Path) -> None:
    """Keep a card's picture under the next free name, unless it is among those that are kept."""
    number, place = 1, picture.with_name(f"{picture.stem}{PREVIOUS}.png")
    while place.exists():
        if filecmp.cmp(picture, place, shallow=False):
            return
        number, place = number + 1, picture.with_name(f"{picture.stem}{PREVIOUS}-{number + 1}.png")
    _copy(picture, place)


def _first_card(run: Run, job: JobConfig) -> None:
    """The card's facts of a run that was stopped before it wrote them."""
    file = network_file(run, job, prompted(job))
    if file is None or not is_network(job) or not job.output.sidecar or file.with_suffix(".json").exists():
        return
    words = f"{job.data.trigger} {job.data.class_word}".strip()
    _write_card(file, {ACTIVATION: words, WEIGHT: 1.0, "negative text": "", "notes": ""})


def _write_card(file: Path, facts: Mapping[str, Any]) -> None:
    with atomic_file(file.with_suffix(".json")) as out:
        out.write(json.dumps(dict(facts), indent=4, ensure_ascii=False).encode())


def _copy(source: Path, target: Path) -> None:
    with atomic_file(target) as out, source.open("rb") as file:
        shutil.copyfileobj(file, out, 1 << 24)
