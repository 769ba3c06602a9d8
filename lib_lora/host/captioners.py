"""The webui's own interrogators and those of tagger extensions, as captioners of the Train tab."""

from __future__ import annotations

import logging
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora.errors import BadDataset, LoraError
from lib_lora.host.detect import Webui
from lib_lora.ui.captioners import Captioner, Describe

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

TAGGERS = ("tagger.utils",)  # where the tagger extensions of the WD14 family keep their `interrogators`
THRESHOLD = 0.35  # of a tag's confidence, those extensions' own default
FACES = re.compile(r"^[^\w]|^\w_\w$")  # emoticons such as :_d and o_o keep their underscore
BLIP_FILE, CLIP_FILE = "model_base_caption_capfilt_large.pth", "ViT-L-14.pt"


def captioners(webui: Webui) -> Sequence[Captioner]:
    """What can be offered now: extensions may have been loaded since the last call."""
    own: list[Captioner] = [Blip(webui), Clip(webui), DeepBooru(webui)]
    return [*own, *(Tagger(webui, name, one) for name, one in _taggers().items())]


class _Base(ABC):
    """What all of them share: alone with the model's memory, with the webui's progress, errors told."""

    name = ""

    def __init__(self, webui: Webui) -> None:
        self.webui = webui

    def available(self) -> str:
        """Why it cannot be used; "" if it can."""
        return ""

    @contextmanager
    def opened(self) -> Iterator[Describe]:
        """See `Captioner.opened`. The queue lock is held: no picture is drawn meanwhile."""
        webui = self.webui
        with webui.call_queue.queue_lock:
            webui.shared.state.begin(job="lorakit captions")
            try:
                self._make_room()
                try:
                    describe = self._load()
                except Exception as error:
                    raise _failed(self.name, "could not be loaded", error) from error
                yield lambda picture: self._guarded(describe, picture)
            finally:
                try:
                    self._unload()
                finally:
                    webui.devices.torch_gc()
                    webui.shared.state.end()

    def _guarded(self, describe: Describe, picture: Image.Image) -> str:
        if self.webui.shared.state.interrupted:
            raise BadDataset("stopped by the webui's Interrupt button; the captions written so far stay")
        try:
            text = describe(picture)
        except LoraError:
            raise
        except Exception as error:
            raise _failed(self.name, "failed", error) from error
        if text.endswith("<error>"):  # what the webui's interrogator says instead of raising
            raise BadDataset(f"{self.name} failed; the console shows why")
        return text

    def _make_room(self) -> None:
        """Send the parts of a model run with --medvram or --lowvram off the GPU, as the webui does before it."""
        try:
            everything_to_cpu = self.webui.lowvram.send_everything_to_cpu
        except (ImportError, AttributeError):  # Forge looks after this itself
            return
        everything_to_cpu()
        self.webui.devices.torch_gc()

    @abstractmethod
    def _load(self) -> Describe:
        """Into memory."""

    def _unload(self) -> None:  # noqa: B027 - some keep nothing
        """Out of the GPU's memory again."""


class Blip(_Base):
    """A sentence, by BLIP alone: the part of the webui's CLIP interrogator that says what is seen."""

    name = "BLIP (a sentence)"

    def downloads(self) -> str:
        """BLIP's weights, and CLIP's, which the webui always loads with them."""
        blip = any((Path(self.webui.paths.models_path) / "BLIP").glob("*.pth"))
        folder = getattr(self.webui.shared.cmd_opts, "clip_models_path", None) or Path.home() / ".cache" / "clip"
        return "" if blip and (Path(folder) / CLIP_FILE).is_file() else "BLIP and CLIP, about 1.8 GB"

    def _load(self) -> Describe:
        interrogator = self.webui.shared.interrogator
        interrogator.load()
        return lambda picture: str(interrogator.generate_caption(picture))

    def _unload(self) -> None:  # noqa: B027 - some keep nothing
        self.webui.shared.interrogator.unload()


class Clip(Blip):
    """A sentence with artists, mediums and styles after it, as the webui's Interrogate CLIP button gives it."""

    name = "CLIP (a sentence and styles)"

    def downloads(self) -> str:
        """Lists of styles as well."""
        lists = Path(self.webui.shared.interrogator.content_dir).is_dir()
        return super().downloads() or ("" if lists else "CLIP's lists of styles, less than 1 MB")

    def _load(self) -> Describe:
        return lambda picture: str(self.webui.shared.interrogator.interrogate(picture))


class DeepBooru(_Base):
    """Tags by DeepDanbooru, filtered as the webui's settings say, never with numbers in them."""

    name = "DeepDanbooru (tags)"

    def downloads(self) -> str:
        """Its weights."""
        there = any((Path(self.webui.paths.models_path) / "torch_deepdanbooru").glob("*.pt"))
        return "" if there else "DeepDanbooru, about 0.6 GB"

    def _load(self) -> Describe:
        model = self.webui.deepbooru.model
        model.start()
        return lambda picture: str(model.tag_multi(picture, force_disable_ranks=True))

    def _unload(self) -> None:  # noqa: B027 - some keep nothing
        model = self.webui.deepbooru.model
        if model.model is not None:
            model.stop()


class Tagger(_Base):
    """One model of a tagger extension: `interrogate(image)` gives (ratings, {tag: confidence})."""

    def __init__(self, webui: Webui, name: str, tagger: Any) -> None:
        super().__init__(webui)
        self.name = f"{name} (tags)"
        self.tagger = tagger

    def available(self) -> str:
        """Why not: an extension of another family."""
        return "" if callable(getattr(self.tagger, "interrogate", None)) else "this extension cannot be asked for tags"

    def downloads(self) -> str:
        """Its weights, as far as can be told from outside of it."""
        loaded = getattr(self.tagger, "model", None) is not None
        local = getattr(self.tagger, "local_model", None) or getattr(self.tagger, "project_path", None)
        return "" if loaded or local else "perhaps its weights, 0.4 to 1.3 GB"

    def _load(self) -> Describe:
        return lambda picture: tags_text(self.tagger.interrogate(picture)[1])

    def _unload(self) -> None:  # noqa: B027 - some keep nothing
        unload = getattr(self.tagger, "unload", None)
        if callable(unload):
            unload()


def tags_text(confidences: Mapping[str, float]) -> str:
    """The tags above the threshold, the surest first, with spaces for underscores."""
    chosen = sorted((-float(sure), tag) for tag, sure in confidences.items() if float(sure) >= THRESHOLD)
    return ", ".join(tag if FACES.match(tag) else tag.replace("_", " ") for _, tag in chosen)


def _taggers() -> dict[str, Any]:
    """The models of every tagger extension that is loaded, by name."""
    found: dict[str, Any] = {}
    for name in TAGGERS:
        module = sys.modules.get(name)
        table = getattr(module, "interrogators", None)
        if table is not None and not table:  # some fill it when their own tab is built
            try:
                module.refresh_interrogators()  # type: ignore[union-attr]
            except Exception as error:
                log.warning("the tagger extension %s cannot be asked: %s", name, error)
            table = getattr(module, "interrogators", None)
        found |= dict(table) if isinstance(table, dict) else {}
    return found


def _failed(name: str, what: str, error: Exception) -> BadDataset:
    log.error("%s %s", name, what, exc_info=error)
    return BadDataset(f"{name} {what} ({type(error).__name__}: {error}); the console shows where")
