"""The webui as the place where the Train tab's jobs are trained: the loaded checkpoint, its folders, its rules."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_lora.errors import BadConfig, LoraError, TrainingFailed
from lib_lora.files.library import NetworkLibrary
from lib_lora.host import training
from lib_lora.host.guard import require_whole
from lib_lora.host.neighbours import FOLDER
from lib_lora.host.webui import WebuiHost
from lib_lora.keys import versions
from lib_lora.models import ldm_model
from lib_lora.models.ldm_layers import version_of
from lib_lora.prompt import Presets
from lib_lora.train.config import JobConfig
from lib_lora.train.control import Control
from lib_lora.train.jobs import Run
from lib_lora.train.story import Story
from lib_lora.ui.drawing import Drawing, draw
from lib_lora.ui.local_trainer import other_base
from lib_lora.ui.trainer import BaseFacts

log = logging.getLogger(__name__)


class WebuiPlace:
    """`local_trainer.Place` over the webui. `new_files` is called when network files came or went."""

    def __init__(
        self, host: WebuiHost, library: NetworkLibrary, new_files: Callable[[], None], presets: Callable[[], Presets]
    ) -> None:
        self._host, self._library, self._new_files, self._presets = host, library, new_files, presets

    def base(self) -> BaseFacts:
        """The loaded checkpoint. While none is loaded yet, what training would load is not known: SD1 is assumed."""
        model = self._model()
        version = (version_of(model) if model is not None else None) or versions.SD1
        name, side = training.base_name(self._host), training.resolution_of(model)
        return BaseFacts(name, version, side, self._host.for_the_page(self._refused(model)))

    def loaded(self) -> str:
        """The name of the loaded checkpoint, "" while none is."""
        return training.base_name(self._host) if self._model() is not None else ""

    def defaults(self) -> Mapping[str, Any]:
        """See `training.defaults`."""
        return training.defaults(self._host)

    def home(self) -> Path:
        """Our folder among the webui's data."""
        folder = self._host.data_folder() / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # whoever writes there says so
            log.warning("the folder %s cannot be made: %s", folder, error)
        return folder

    def check(self, job: JobConfig) -> None:
        """Raises BadConfig for what an exposed webui forbids, and for a job of another checkpoint."""
        training.require_allowed(self._host, job)
        file = getattr(getattr(self._model(), "sd_checkpoint_info", None), "filename", None)
        if file:
            training.require_loaded(job, Path(file))

    def allowed(self, path: str, what: str) -> Path:
        """See `training.allowed`."""
        return training.allowed(self._host, path, what)

    def train(self, job: JobConfig, run: Run, control: Control) -> None:
        """Train alone on the model: the webui's queue lock is held, what it draws meanwhile waits."""
        training.require_packages()
        training.require_allowed(self._host, job)
        try:
            self._host.exclusive(lambda: self._train_alone(job, run, control))
        except LoraError:
            raise
        except Exception as error:  # nobody would see it in this thread: the tab shows it, the console has the trace
            log.exception("training failed")
            raise TrainingFailed(f"{type(error).__name__}: {error}; the console shows where it happened") from error
        training.list_anew(self._host, job)

    def _train_alone(self, job: JobConfig, run: Run, control: Control) -> None:
        """Train on the model that is loaded now: another may have been chosen while the run waited for it."""
        wanted, loaded = Story(run).read().base, self.loaded()
        if wanted and loaded and wanted != loaded:
            raise BadConfig(other_base(run.folder.name, wanted, loaded))
        training.train_on(self._host, job, _ignore, control, run.folder)

    def draw(self, drawing: Drawing) -> Sequence[Any]:
        """Draw alone on the model."""
        job = "LoRA pictures"
        return list(
            self._host.exclusive(
                lambda: draw(self._host.model(), self._library, drawing, self._presets()), job, prove=False
            )
        )

    def changed(self) -> None:
        """Let tag and cards look again."""
        self._new_files()

    def for_the_page(self, message: str) -> str:
        """See `WebuiHost.for_the_page`."""
        return self._host.for_the_page(message)

    def _model(self) -> Any:
        return self._host.webui.sd_models.model_data.sd_model  # asking `shared` would load one

    def _refused(self, model: Any) -> str:
        if model is None:
            return ""
        reason = ldm_model.why_not(model)
        if reason is not None:
            return f"cannot train on this checkpoint: {reason}"
        try:
            training.require_packages()
            require_whole(model)
        except LoraError as error:
            return str(error)
        return ""


def _ignore(event: Mapping[str, Any]) -> None:
    """Events are read from the run's folder."""
