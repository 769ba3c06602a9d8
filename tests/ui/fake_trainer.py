"""A trainer that trains nothing: every fact can be set, every call is noted. `from tests.ui.fake_trainer import ...`"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lib_lora.errors import BadConfig, LoraError
from lib_lora.train.config import JobConfig
from lib_lora.train.presets import PRESETS, preset_job
from lib_lora.ui.trainer import BaseFacts, Point, RunFacts, Sample, TrainStatus

SD1 = BaseFacts("v1-5-pruned-emaonly", "sd1", 512)
SDXL = BaseFacts("sd_xl_base_1.0", "sdxl", 1024)
INPAINTING = BaseFacts("v1-5-inpainting", "sd1", 512, "it is an inpainting model; choose one that draws from noise")


@dataclass
class FakeTrainer:
    """`Trainer` over plain values. `root` is a folder of the test's own; `home()` is made in it.

    `facts`, `now`, `known`, `defaults` may be set at any time; `errors[method] = LoraError(...)` makes a method raise;
    `calls` are (method, arguments) in order; `hook(method)` is called before each. `outside`: folders it forbids.
    """

    root: Path
    facts: BaseFacts = SD1
    now: TrainStatus = field(default_factory=TrainStatus)
    known: list[RunFacts] = field(default_factory=list)
    made_with: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, LoraError] = field(default_factory=dict)
    outside: tuple[Path, ...] = ()
    submitted: list[Mapping[str, Any]] = field(default_factory=list)
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    hook: Callable[[str], None] | None = None
    exposed: bool = False

    def __post_init__(self) -> None:
        if not self.defaults:
            folders = {"output.folder": "runs", "output.network_folder": "networks"}
            self.defaults = {key: str(self.root / name) for key, name in folders.items()}

    def base(self) -> BaseFacts:
        """`facts`."""
        self._called("base")
        return self.facts

    def job(self, settings: Mapping[str, Any]) -> JobConfig:
        """As the real ones do it: defaults over the preset, the settings over both."""
        self._called("job", settings)
        values = dict(settings)
        preset = values.pop("preset", None) or next(iter(PRESETS))
        resolution = {"data.resolution": self.facts.resolution}
        return preset_job(preset, {**resolution, **self.defaults, **values})

    def submit(self, settings: Mapping[str, Any]) -> str:
        """Checks the job and notes the settings in `submitted`; idle becomes running, else it waits."""
        self._called("submit", settings)
        job = self.job(settings)
        self.submitted.append(dict(settings))
        id = f"{job.output.name}-{len(self.submitted)}"
        self.made_with[id] = dict(settings)
        if self.now.state in ("running", "paused"):
            self.now = replace(self.now, waiting=(*self.now.waiting, id))
        else:
            self.now = TrainStatus("running", id, job.output.name, "making pictures ready", total=job.training.steps)
        return id

    def status(self) -> TrainStatus:
        """`now`."""
        self._called("status")
        return self.now

    def pause(self) -> str:
        """Running -> paused."""
        self._called("pause")
        self.now = replace(self.now, state="paused")
        return "Pausing after this step."

    def resume(self, id: str = "", changes: Mapping[str, Any] | None = None) -> str:
        """Anything -> running."""
        self._called("resume", id, *([changes] if changes else []))
        self.now = replace(self.now, state="running", id=id or self.now.id)
        return "Going on."

    def cancel(self, id: str = "") -> str:
        """Takes a waiting one out, or ends the one in hand."""
        self._called("cancel", id)
        if id in self.now.waiting:
            self.now = replace(self.now, waiting=tuple(one for one in self.now.waiting if one != id))
            return "Taken out of the queue."
        self.now = replace(self.now, state="cancelled")
        return "Stopping after this step."

    def save_now(self) -> str:
        """Only noted."""
        self._called("save_now")
        return "Saving after this step."

    def move(self, id: str, by: int) -> str:
        """Moves within `now.waiting`. Raises BadConfig for an id that does not wait."""
        self._called("move", id, by)
        waiting = list(self.now.waiting)
        if id not in waiting:
            raise BadConfig(f"{id!r} does not wait; choose one of the queue")
        place = waiting.index(id)
        waiting.insert(min(max(place + by, 0), len(waiting) - 1), waiting.pop(place))
        self.now = replace(self.now, waiting=tuple(waiting))
        return "Moved."

    def runs(self) -> Sequence[RunFacts]:
        """`known` without points and samples."""
        self._called("runs")
        return [replace(run, points=(), samples=()) for run in self.known]

    def run(self, id: str) -> RunFacts:
        """One of `known`. Raises BadConfig."""
        self._called("run", id)
        for run in self.known:
            if run.id == id:
                return run
        raise BadConfig(f"there is no run {id!r}; choose one of the list")

    def settings_of(self, id: str) -> Mapping[str, Any]:
        """`made_with[id]`. Raises BadConfig."""
        self._called("settings_of", id)
        if id not in self.made_with:
            raise BadConfig(f"there is no run {id!r}; choose one of the list")
        return self.made_with[id]

    def forget(self, id: str) -> str:
        """Takes it out of `known`. Raises BadConfig."""
        self._called("forget", id)
        run = self.run(id)
        self.known.remove(run)
        return f"Deleted run {id}."

    def draw(
        self,
        prompts: Sequence[str],
        seed: int,
        steps: int,
        cfg: float,
        negative: str = "",
        files: Mapping[str, Path] | None = None,
        words: Mapping[str, Path] | None = None,
    ) -> Sequence[Any]:
        """A picture of one colour for each prompt, another for each prompt and seed."""
        from PIL import Image

        self._called("draw", tuple(prompts), seed, steps, cfg, negative, dict(files or {}), dict(words or {}))
        if self.now.state == "running":
            raise BadConfig("a network is being trained; wait for it, pause it or cancel it")
        shades = [sum(f"{prompt}{seed}".encode()) % 256 for prompt in prompts]
        return [Image.new("RGB", (64, 64), (shade, 128, 255 - shade)) for shade in shades]

    def allowed(self, path: str, what: str) -> Path:
        """Everything but what lies in `outside`. Raises BadConfig."""
        self._called("allowed", path, what)
        found = Path(path.strip().strip("'\"")).expanduser().resolve()
        if any(found.is_relative_to(folder.resolve()) for folder in self.outside):
            raise BadConfig(f"{what} = {path!r} is outside of what this page may use; choose another folder")
        return found

    def home(self) -> Path:
        """`root`/home, made when asked for."""
        self._called("home")
        folder = self.root / "home"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def changed(self) -> None:
        """Only noted."""
        self._called("changed")

    def for_the_page(self, text: str) -> str:
        """As it is; without where `root` lies if `exposed`."""
        return text.replace(f"{self.root}{os.sep}", "").replace(str(self.root), "") if self.exposed else text

    def named(self, method: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of a method."""
        return [arguments for name, arguments in self.calls if name == method]

    def _called(self, method: str, *arguments: Any) -> None:
        if self.hook is not None:
            self.hook(method)
        self.calls.append((method, arguments))
        if method in self.errors:
            raise self.errors[method]


def running(step: int = 120, total: int = 600, name: str = "rex") -> TrainStatus:
    """A job in the middle, with a falling loss and a picture's place every 50 steps (no files)."""
    points = tuple(Point(at, 0.2 / (1 + at / 100), 0.19 / (1 + at / 100), 1e-4) for at in range(1, step + 1))
    samples = tuple(Sample(at, f"photo of sks dog {at}", Path(f"{at:06d}-0.png")) for at in range(50, step + 1, 50))
    return TrainStatus(
        "running", f"{name}-1", name, "training", step, total, epoch=step // 12, loss=0.1, lr=1e-4,
        eta_s=(total - step) * 0.5, step_s=0.5, memory=5 << 30, memory_total=12 << 30, points=points,
        samples=samples, log=("12 pictures, 24 visits an epoch", "saved step 100"),
    )  # fmt: skip


def finished_run(folder: Path, id: str = "rex-1", **facts: Any) -> RunFacts:
    """A run as it is listed; `facts` replace any of its fields."""
    run = RunFacts(id, folder / id, id.rpartition("-")[0] or id, "network", "finished", 1.7e9, 600, 600, 0.08)
    return replace(run, **facts)
