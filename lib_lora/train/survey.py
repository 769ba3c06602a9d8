"""What a folder of pictures holds, looked at before anything is trained: each file, its caption, what is wrong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lib_lora.errors import BadDataset
from lib_lora.train.caption_files import CaptionFiles
from lib_lora.train.captions import Source, sources
from lib_lora.train.images import list_pictures
from lib_lora.train.looking import Header, Look, Looker
from lib_lora.train.sections_data import Data

if TYPE_CHECKING:
    import numpy as np

FEW = 5  # pictures of a subject below which poses and places are learned along with it
LONG = 2.0  # times its other side
BLURRED = 0.7  # see looking.blur_of
ENLARGED = 1.15  # times; less than that nobody sees
MIXED = 0.2  # share of a picture that a square cuts away
BITS, LIKENESS = 24, 0.88  # of two pictures alike: bits of the hash that differ at most, correlation at least
FLAT, SHADE = 2.0, 6.0  # of pictures of one colour: spread at most; difference of two alike
_ROWS = 512  # pictures compared with all others at once

# What is wrong -> how it is called, and what to do; plain constants, so that they can be translated
PROBLEMS: Mapping[str, tuple[str, str]] = {
    "corrupt": ("Cannot be read", "The file is broken or of an unknown kind. It is left out; replace or remove it."),
    "small": ("Too small", "It has to be enlarged and will look soft. Use a larger version, or remove it."),
    "long": ("Very long", "A square cut out of its middle shows little of it. Crop it, or turn on buckets."),
    "animated": ("Animated", "Only the first frame is used."),
    "transparent": ("Transparent", "What shines through becomes white. Fill the background, or use the alpha mask."),
    "blurred": ("Blurred", "It looks out of focus, and that is learned as well. Remove it if you have sharper ones."),
    "twin": ("Alike", "Another picture is the same or nearly the same. Keep the best one."),
    "shared": ("Same name", "Another file has the same name with another ending. Rename one of them."),
}
ADVICE: Mapping[str, str] = {
    "none": "There is no picture in this folder.",
    "nested": "The pictures are in sub-folders. Choose one of them, or name them like 10_sks dog: repeats, then words.",
    "few": "These are few pictures. 10 to 30 different ones of a subject, 30 or more of a style, work best.",
    "mixed": "The pictures have different shapes. Turn on buckets under Advanced, so that nothing is cut off.",
    "small": "Most pictures are smaller than the training resolution. Lower the resolution, or find larger ones.",
    "captions": "Some pictures have a caption and some have none. Those without get trigger and class only.",
}


@dataclass(frozen=True)
class Picture:
    """One file. `caption` is "" without one; `kept_in` says where it stands: "txt", "table" or "".

    `problems` are keys of PROBLEMS. `look` is None until the picture has been decoded.
    """

    path: Path
    header: Header
    repeats: int = 1
    caption: str = ""
    kept_in: str = ""
    problems: tuple[str, ...] = ()
    look: Look | None = None


@dataclass(frozen=True)
class Part:
    """A folder whose pictures are learned alike; `words` are what its name says after the repeats."""

    path: Path
    repeats: int
    words: str
    pictures: int


@dataclass(frozen=True)
class Survey:
    """A folder at a glance. `groups` are pictures alike, `advice` keys of ADVICE, `visits` an epoch's length.

    `unseen` counts the pictures that have not been decoded yet: call `survey` again to go on.
    """

    folder: Path
    pictures: tuple[Picture, ...] = ()
    parts: tuple[Part, ...] = ()
    groups: tuple[tuple[Path, ...], ...] = ()
    advice: tuple[str, ...] = ()
    visits: int = 0
    unseen: int = 0
    notes: tuple[str, ...] = field(default=())

    def count(self, problem: str) -> int:
        """How many pictures have a problem."""
        return sum(problem in picture.problems for picture in self.pictures)


def survey(folder: Path, resolution: int, looker: Looker, seconds: float = math.inf) -> Survey:
    """Look at every picture of a folder, and at its sub-folders named 'N_words' if it has any.

    Headers are always read; pictures are decoded, those remembered aside, for so many `seconds` at most. Raises
    BadDataset if there is no such folder, or if it cannot be read.
    """
    try:
        found = sources(Data(folder=str(folder)))
        notes: list[str] = []
        pictures = [picture for source in found for picture in _of(source, looker, notes)]
    except OSError as error:
        raise BadDataset(f"the folder {str(folder)!r} cannot be read ({error}); check its permissions") from error
    looker.look_at([picture.path for picture in pictures if not picture.header.broken], seconds)
    pictures = [replace(one, look=looker.known(one.path)) for one in pictures]
    groups = alike([one for one in pictures if one.look is not None and not one.look.broken])
    twins = {path for group in groups for path in group}
    stems = Counter(picture.path.with_suffix("") for picture in pictures)
    judged = tuple(
        replace(one, problems=_problems(one, resolution, one.path in twins, stems[one.path.with_suffix("")] > 1))
        for one in pictures
    )
    good = [one for one in judged if "corrupt" not in one.problems]
    return Survey(
        folder,
        judged,
        tuple(Part(s.folder, s.repeats, s.trigger, sum(p.path.parent == s.folder for p in judged)) for s in found),
        groups,
        tuple(_advice(folder, good, resolution)),
        sum(one.repeats for one in good),
        sum(one.look is None for one in good),
        tuple(notes),
    )


def alike(pictures: Sequence[Picture]) -> tuple[tuple[Path, ...], ...]:
    """Groups of pictures that are the same or nearly so: resized, compressed anew, brightened, or a moment later.

    Two are alike if their hashes differ in few bits and their small grey versions go together (correlation), or if
    both are of one and the same grey. Groups are joined over their members.
    """
    import numpy as np

    looks = [one.look for one in pictures if one.look is not None and one.look.grey is not None]
    paths = [one.path for one in pictures if one.look is not None and one.look.grey is not None]
    if len(looks) < 2:
        return ()
    grey = np.stack([look.grey.ravel() for look in looks if look.grey is not None])
    bits = np.unpackbits(np.array([look.hash for look in looks], dtype=">u8").view(np.uint8).reshape(-1, 8), axis=1)
    leader = list(range(len(paths)))
    for a, b in _pairs(grey, bits.astype(np.float32)):
        first, second = _top(leader, a), _top(leader, b)
        leader[max(first, second)] = min(first, second)
    groups: dict[int, list[Path]] = {}
    for place, path in enumerate(paths):
        groups.setdefault(_top(leader, place), []).append(path)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _pairs(grey: np.ndarray, bits: np.ndarray) -> Iterator[tuple[int, int]]:
    """Indices of pictures alike, from (n, 256) greys and (n, 64) bits."""
    import numpy as np

    mean, spread = grey.mean(axis=1), grey.std(axis=1)
    unit = (grey - mean[:, None]) / np.maximum(spread, 1e-6)[:, None] / math.sqrt(grey.shape[1])
    flat = spread < FLAT
    for start in range(0, len(grey), _ROWS):
        rows = slice(start, start + _ROWS)
        differ = bits[rows] @ (1 - bits).T + (1 - bits[rows]) @ bits.T
        like = (unit[rows] @ unit.T >= LIKENESS) & (differ <= BITS) & ~flat[rows, None] & ~flat
        like |= flat[rows, None] & flat & (np.abs(mean[rows, None] - mean) < SHADE)
        for a, b in np.argwhere(like):
            if start + a < b:
                yield int(start + a), int(b)


def _top(leader: list[int], place: int) -> int:
    while leader[place] != place:
        leader[place] = leader[leader[place]]
        place = leader[place]
    return place


def _of(source: Source, looker: Looker, notes: list[str]) -> Iterator[Picture]:
    try:
        files = CaptionFiles(source.folder)
    except BadDataset as error:  # a table that cannot be read; the pictures can be looked at all the same
        notes.append(str(error))
        files = CaptionFiles(source.folder, use_tables=False)
    for path in list_pictures(source.folder):
        beside, table = files.beside(path), files.in_table(path)
        kept_in = "txt" if beside else "table" if table else ""
        yield Picture(path, looker.header(path), source.repeats, "\n".join(beside or table), kept_in)


def _problems(picture: Picture, resolution: int, twin: bool, shared: bool) -> tuple[str, ...]:
    header, look = picture.header, picture.look
    if header.broken or (look is not None and look.broken):
        return ("corrupt",)
    width, height = header.size
    found = {
        "small": resolution / min(width, height) > ENLARGED,
        "long": max(width, height) / min(width, height) > LONG,
        "animated": header.animated,
        "transparent": look is not None and look.transparent,
        "blurred": look is not None and look.blur > BLURRED,
        "twin": twin,
        "shared": shared,
    }
    return tuple(name for name, there in found.items() if there)


def _holds_pictures(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    try:
        return path.is_dir() and bool(list_pictures(path))
    except OSError:  # somebody else's folder
        return False


def _advice(folder: Path, good: Sequence[Picture], resolution: int) -> Iterator[str]:
    if not good:
        yield "nested" if any(_holds_pictures(path) for path in folder.iterdir()) else "none"
        return
    if len(good) < FEW:
        yield "few"
    shapes = [min(one.header.size) / max(one.header.size) for one in good]
    if len(good) > 1 and sum(shape < 1 - MIXED for shape in shapes) > len(good) / 4:
        yield "mixed"
    if sum("small" in one.problems for one in good) > len(good) / 2:
        yield "small"
    if 0 < sum(bool(one.caption) for one in good) < len(good):
        yield "captions"
