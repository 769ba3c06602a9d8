"""The texts that the webui keeps encoded: its key has a picture's tags, not what they stand for at the moment."""

from __future__ import annotations

from typing import Any

from lib_lora.host.detect import Webui

CACHES = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")


class CachedTexts:
    """Drops them when networks changed."""

    def __init__(self, webui: Webui) -> None:
        self.webui = webui
        self._made_with: object = ()

    def forget(self) -> None:
        """Let the next picture encode its texts anew: somebody else applied networks meanwhile."""
        self._made_with = object()

    def use(self, p: Any, made_with: object) -> None:
        """From now on texts are encoded with these networks; those that were with others are not used again.

        The webui keeps one set for all pictures, and that of the hires pass apart: img2img does not reach it.
        """
        if made_with == self._made_with:
            return
        self._made_with = made_with
        processing = self.webui.processing
        for owner in (p, processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img):
            for name in CACHES:
                cache = getattr(owner, name, None)
                if isinstance(cache, list) and cache:
                    cache[0] = None
