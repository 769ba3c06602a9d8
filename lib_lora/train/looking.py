"""One look at a picture file: its header first, then decoded once for all that is told and shown of it; remembered."""

from __future__ import annotations

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora.errors import BadDataset
from lib_lora.train.images import Size, look, open_layers

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

THUMBNAIL = 192  # pixels, longest side
QUALITY = 80
SIDE = 256  # pixels of the shorter side where sharpness is measured
GREY = 16  # side of the small grey picture that likeness is judged by
WINDOW = 9  # pixels that the blur of the measure goes over
_SEEN_THROUGH = 250  # opacity below which a pixel counts as transparent
_KEPT = 5000  # pictures remembered, about 10 KB each
_WORKERS = 4


@dataclass(frozen=True)
class Header:
    """What a file tells without being decoded; `broken` says why it cannot be used, and the rest is then empty."""

    size: Size = (0, 0)
    format: str = ""
    animated: bool = False
    bytes: int = 0
    broken: str = ""


@dataclass(frozen=True)
class Look:
    """What a decoded picture tells. `broken` says why it could not be decoded, and the rest is then empty.

    `hash` has 64 bits (see `difference_hash`), `grey` is (16, 16) float32, `blur` from 0 (sharp) to 1, `transparent`
    whether anything shines through, `thumbnail` a small JPEG.
    """

    hash: int = 0
    grey: np.ndarray | None = None
    blur: float = 0.0
    transparent: bool = False
    thumbnail: bytes = b""
    broken: str = ""


class Looker:
    """Looks at files and remembers them by path, time and length. Safe to use from several threads."""

    def __init__(self) -> None:
        self._headers: OrderedDict[Any, Header] = OrderedDict()
        self._looks: OrderedDict[Any, Look] = OrderedDict()
        self._lock = threading.Lock()

    def header(self, path: Path) -> Header:
        """What the file's header tells."""
        key = _key(path)
        found: Header | None = self._known(self._headers, key)
        return found or self._remember(self._headers, key, _read_header(path))

    def known(self, path: Path) -> Look | None:
        """What `look` would give, if that is known already."""
        return self._known(self._looks, _key(path))

    def look(self, path: Path) -> Look:
        """The picture, decoded."""
        key = _key(path)
        found: Look | None = self._known(self._looks, key)
        return found or self._remember(self._looks, key, _read(path))

    def look_at(self, paths: Iterable[Path], seconds: float) -> None:
        """Look at those not yet known until the time is over; the rest stay unknown."""
        end = time.monotonic() + seconds
        missing = [path for path in paths if self.known(path) is None]

        def one(path: Path) -> None:
            if time.monotonic() < end:
                self.look(path)

        if missing:  # decoders let go of the interpreter, so threads help
            with ThreadPoolExecutor(_WORKERS) as pool:
                list(pool.map(one, missing))

    def _known(self, table: OrderedDict[Any, Any], key: Any) -> Any:
        with self._lock:
            if key in table:
                table.move_to_end(key)
            return table.get(key)

    def _remember(self, table: OrderedDict[Any, Any], key: Any, value: Any) -> Any:
        with self._lock:
            table[key] = value
            while len(table) > _KEPT:
                table.popitem(last=False)
        return value


def difference_hash(picture: Image.Image) -> int:
    """64 bits: of a grey picture of 9 x 8, whether each pixel is brighter than the one to its left.

    Changes of size, of brightness and of compression leave nearly all bits alone.
    """
    import numpy as np
    from PIL import Image

    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def blur_of(picture: Image.Image) -> float:
    """How blurred a picture is, from 0 to 1, hardly depending on what it shows; photos in focus have 0.2 to 0.5.

    After Crete et al. 2007, "The blur effect: perception and estimation with a new no-reference perceptual blur
    metric": a sharp picture loses much of the difference between neighbours when it is blurred again, a blurred one
    little. With d and e these differences before and after, it is 1 - sum(max(0, d - e)) / sum(d), the larger one of
    both directions. Measured where the shorter side has 256 pixels, so that fine grain does not count.
    """
    import numpy as np
    from PIL import Image

    scale = SIDE / min(picture.size)
    if max(picture.size) * scale > 16 * SIDE:
        return 0.0  # a strip this long would take gigabytes
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    grey = np.asarray(picture.convert("F").resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    return max(_lost(grey), _lost(grey.T))


def _lost(grey: np.ndarray) -> float:
    """The measure along the first axis of (h, w)."""
    import numpy as np

    padded = np.pad(grey, ((WINDOW // 2 + 1, WINDOW // 2), (0, 0)), mode="edge").cumsum(axis=0, dtype=np.float64)
    mean = (padded[WINDOW:] - padded[:-WINDOW]) / WINDOW
    before, after = np.abs(np.diff(grey, axis=0)), np.abs(np.diff(mean, axis=0))
    total = float(before.sum())
    return 1.0 - float(np.maximum(0, before - after).sum()) / total if total else 0.0


def _key(path: Path) -> tuple[str, int, int]:
    try:
        facts = path.stat()
    except OSError:
        return str(path), 0, -1
    return str(path), facts.st_mtime_ns, facts.st_size


def _read_header(path: Path) -> Header:
    from PIL import Image

    try:
        size, length = look(path), path.stat().st_size
        with Image.open(path) as picture:
            return Header(size, picture.format or "", bool(getattr(picture, "is_animated", False)), length)
    except (BadDataset, OSError) as error:
        return Header(broken=str(error))


def _read(path: Path) -> Look:
    import numpy as np
    from PIL import Image

    try:
        picture, alpha = open_layers(path)
    except BadDataset as error:
        return Look(broken=str(error))
    grey = picture.convert("L").resize((GREY, GREY), Image.Resampling.BOX)
    clear = alpha is not None and alpha.getextrema()[0] < _SEEN_THROUGH
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    values = np.asarray(grey, dtype=np.float32)
    return Look(difference_hash(picture), values, blur_of(picture), clear, file.getvalue())
