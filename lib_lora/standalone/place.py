"""The standalone program as the place where the Train tab's jobs are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora.errors import BadConfig
from lib_lora.files.given import given_path
from lib_lora.files.library import NetworkLibrary
from lib_lora.prompt import Presets
from lib_lora.train.config import JobConfig
from lib_lora.train.control import Control
from lib_lora.train.jobs import Run
from lib_lora.ui.drawing import Drawing, draw
from lib_lora.ui.trainer import BaseFacts

if TYPE_CHECKING:
    from lib_lora.standalone.server import Standalone


class StandalonePlace:
    """`local_trainer.Place` over the program's one model."""

    def __init__(self, program: Standalone) -> None:
        self._program = program

    def base(self) -> BaseFacts:
        """The one model there is."""
        model = self._program.model
        return BaseFacts(model.name, model.version, self._program.side)

    def loaded(self) -> str:
        """Its name."""
        return str(self._program.model.name)

    def defaults(self) -> Mapping[str, Any]:
        """See `Standalone.defaults`."""
        return self._program.defaults()

    def home(self) -> Path:
        """A folder beside that of the runs."""
        folder = self._program.runs.parent / "lorakit"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadConfig(f"the folder {str(folder)!r} cannot be made ({error}); start elsewhere") from error
        return folder

    def check(self, job: JobConfig) -> None:
        """Raises BadConfig for a job of another checkpoint."""
        wanted, source = job.base.checkpoint, self._program.model.source
        if wanted and (source is None or self.allowed(wanted, "base.checkpoint") != source.resolve()):
            raise BadConfig(
                f"base.checkpoint = {wanted!r} is not the loaded model, {str(source)!r}; leave it empty, or start with "
                "--checkpoint"
            )

    def allowed(self, path: str, what: str) -> Path:
        """Any path: only this machine's user reaches the page."""
        return given_path(path, what)

    def train(self, job: JobConfig, run: Run, control: Control) -> None:
        """Train while nothing is drawn."""
        from lib_lora.train.engine import train

        with self._program.lock:
            self._program.runtime.deactivate()
            train(job, self._program.model, cancel=control, resume=run.folder)

    def draw(self, drawing: Drawing) -> Sequence[Any]:
        """Draw while nothing is trained."""
        folder = self._program.folder
        with self._program.alone():
            self._program.runtime.deactivate()
            return draw(self._program.model, NetworkLibrary([folder]), drawing, Presets.load(folder))

    def changed(self) -> None:
        """Nothing to do: names are looked up anew each time."""

    def for_the_page(self, message: str) -> str:
        """As it is: who reads it sits at this machine."""
        return message
