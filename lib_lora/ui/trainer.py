"""What the Train page needs of whoever trains: facts as plain values, and one protocol that every host implements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lib_lora.train.config import JobConfig
from lib_lora.train.history import Point, RunFacts, Sample

__all__ = ["BaseFacts", "Point", "RunFacts", "Sample", "Settings", "TrainStatus", "Trainer"]
Settings = Mapping[str, Any]  # {"section.name": value, "concept": [table, ...], "preset": name}


@dataclass(frozen=True)
class BaseFacts:
    """The base model that is trained against. `version`: "sd1", "sd2" or "sdxl"; `resolution` in pixels.

    `refused` says why it cannot be trained (no checkpoint loaded, inpainting, SD3, ...); empty if it can.
    """

    name: str
    version: str
    resolution: int
    refused: str = ""


@dataclass(frozen=True)
class TrainStatus:
    """Where the job in hand stands, or the latest one if none is.

    `state`: idle, running, paused, finished, failed, cancelled or interrupted. `doing`: what goes on, for people
    ("making pictures ready: 3 of 12"). `eta_s` and `step_s` in seconds, memory in bytes (None where there is no GPU:
    then the process's own). `tag` is what to write in a prompt for `result`, `words` what calls the concept. `log` are
    the last lines for people, `waiting` the ids of the runs in the queue, the next one first. Several pages, and one
    after a restart, see the same.
    """

    state: str = "idle"
    id: str = ""
    name: str = ""
    doing: str = ""
    step: int = 0
    total: int = 0
    epoch: int = 0
    loss: float | None = None
    lr: float | None = None
    eta_s: float | None = None
    step_s: float | None = None
    memory: int | None = None
    memory_total: int | None = None
    points: tuple[Point, ...] = ()
    samples: tuple[Sample, ...] = ()
    log: tuple[str, ...] = ()
    result: Path | None = None
    tag: str = ""
    words: str = ""
    waiting: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The same for HTTP: paths as text."""
        return {name: _plain(value) for name, value in vars(self).items()}


class Trainer(Protocol):
    """Trains jobs one after another in the background, and knows every run there was.

    Settings are checked by the one declaration in train.config and by the host's own rules (`allowed`). Methods raise
    LoraError with a message for the user; what they return as text is also for the user.
    """

    def base(self) -> BaseFacts:
        """The base model as it is loaded now; cheap."""

    def job(self, settings: Settings) -> JobConfig:
        """The checked job of these settings: the preset's, then the host's defaults, then these. Raises LoraError."""

    def submit(self, settings: Settings) -> str:
        """Queue a job; it begins when nothing else is trained. Its id. Raises LoraError, with nothing queued."""

    def status(self) -> TrainStatus:
        """Where the job in hand, or the latest one, stands."""

    def pause(self) -> str:
        """Stop after this step, with the state kept and the model free for drawing; the queue waits too."""

    def resume(self, id: str = "", changes: Settings | None = None) -> str:
        """Go on with a paused, cancelled, failed or interrupted run (empty: the paused one) and with the queue.

        `changes` are settings to go on with in place of the run's own, e.g. a smaller batch, or for a finished run more
        steps. Raises BadConfig for those that are not accepted; the run tells those that do not fit its state.
        """

    def cancel(self, id: str = "") -> str:
        """End the job in hand after this step, its state kept; or take a waiting one (by id) out of the queue."""

    def save_now(self) -> str:
        """Keep the network as it is after this step, beside the run's other checkpoints, and go on."""

    def move(self, id: str, by: int) -> str:
        """Move a waiting job up (negative) or down in the queue."""

    def runs(self) -> Sequence[RunFacts]:
        """Every run there is, newest first, without points and samples."""

    def run(self, id: str) -> RunFacts:
        """One run with everything. Raises BadConfig if there is none of that id."""

    def settings_of(self, id: str) -> Settings:
        """The settings a run was made with, to repeat it."""

    def forget(self, id: str) -> str:
        """Delete a run's folder (asked before by the page); never what is held, running or in another folder."""

    def draw(  # noqa: PLR0913
        self,
        prompts: Sequence[str],
        seed: int,
        steps: int,
        cfg: float,
        negative: str = "",
        files: Mapping[str, Path] | None = None,
        words: Mapping[str, Path] | None = None,
    ) -> Sequence[Any]:
        """One PIL picture for each prompt, tags and all, in the usual size. Raises BadConfig while it trains.

        `files` are networks beside the host's own: {name in a tag: file}, e.g. of a run's checkpoints folder; `words`
        are embeddings: {word in a prompt: file}. The model is as before afterwards.
        """

    def allowed(self, path: str, what: str) -> Path:
        """The path of the user's own (`what` names the field), resolved. Raises BadConfig if this host forbids it."""

    def home(self) -> Path:
        """The folder for what the page itself keeps: presets, remembered settings, uploads, queue."""

    def changed(self) -> None:
        """Network files came or went: tags and cards look again."""

    def for_the_page(self, text: str) -> str:
        """A text as users of this host may read it: where others reach the page, without where its folders lie."""


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in vars(value).items()} if hasattr(value, "__dict__") else value
