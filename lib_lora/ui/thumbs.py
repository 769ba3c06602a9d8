"""Pictures on the page as data: URLs, made small once and kept."""

from __future__ import annotations

import base64
import io
import threading
from collections import OrderedDict
from pathlib import Path

SMALL, LARGE = 192, 1024  # pixels of the longer side
KEPT = 512  # small ones held in memory, about 10 kB each
MOST_PIXELS = 64 * 1024**2
Key = tuple[str, int, int, int]


class Thumbs:
    """Small pictures by path, size and time; safe to use from any thread."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._made: OrderedDict[Key, str] = OrderedDict()
        self._lock = threading.Lock()

    def url(self, path: Path, side: int = SMALL) -> str:
        """The picture as a JPEG no longer than `side`, as a data: URL; empty if it is gone or no picture."""
        try:
            facts = path.stat()
        except (OSError, ValueError):
            return ""
        key = (str(path), facts.st_mtime_ns, facts.st_size, side)
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        made = picture_url(path, side)
        if side <= SMALL and made:
            with self._lock:
                self._made[key] = made
                while len(self._made) > self._kept:
                    self._made.popitem(last=False)
        return made


def picture_url(path: Path, side: int) -> str:
    """A picture as a data: URL; empty if it cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as full:
            if full.width * full.height > MOST_PIXELS:
                return ""
            full.draft("RGB", (side, side))
            small = full.convert("RGB")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return ""
    small.thumbnail((side, side))
    out = io.BytesIO()
    small.save(out, "jpeg", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
