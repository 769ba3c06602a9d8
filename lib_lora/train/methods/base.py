"""What a kind of training says of itself; the loop is the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lib_lora.train.config import JobConfig
from lib_lora.train.learners import Learner

if TYPE_CHECKING:
    from torch import Tensor

    from lib_lora.ports import DiffusionModel
    from lib_lora.train.captions import Dataset
    from lib_lora.train.plan import Visit
    from lib_lora.train.session import Session

NETWORK, EMBEDDING, HYPERNETWORK, CHECKPOINT = "network", "embedding", "hypernetwork", "checkpoint"


@dataclass(frozen=True)
class Product:
    """A file that a run makes. `place` is the kind of folder that finished ones are copied to."""

    place: str
    name: str

    def tag(self) -> str:
        """What a prompt says to use the file; "" for a checkpoint, which is chosen elsewhere."""
        stem = self.name.rpartition(".")[0]
        return {NETWORK: f"<lora:{stem}:1>", HYPERNETWORK: f"<hypernet:{stem}:1>", EMBEDDING: stem}.get(self.place, "")

    def target_folder(self, job: JobConfig) -> str:
        """The folder the job names for this kind of file, or ""."""
        return str(job.get(f"output.{self.place}_folder"))


class Method(ABC):
    """A kind of training. Objects have no state of their own: whatever a run needs is in its session."""

    name: ClassVar[str]
    pictures: ClassVar[bool] = True  # whether latents of pictures are needed
    strengths: ClassVar[tuple[float, ...]] = (1.0,)  # each batch is gone through once at each of them

    @abstractmethod
    def products(self, job: JobConfig, stem: str) -> tuple[Product, ...]:
        """The files a run makes under the name `stem`, the main one first."""

    @abstractmethod
    def learners(self, job: JobConfig, model: DiffusionModel) -> tuple[Learner, ...]:
        """What is trained, fresh. Raises BadConfig if the job does not fit the model."""

    @abstractmethod
    def write(self, session: Session, folder: Path, products: Sequence[Product], step: int) -> None:
        """Write the products, atomically each, as trained after `step` steps."""

    def dataset(self, job: JobConfig) -> Dataset:
        """What is learned from. Raises BadDataset."""
        from lib_lora.train.captions import read_dataset

        return read_dataset(job)

    def losses(self, session: Session, visits: Sequence[Visit]) -> Tensor:
        """(batch,) losses of one forward pass."""
        from lib_lora.train.diffusion import diffusion_losses

        return diffusion_losses(session, visits)

    def check(self, session: Session) -> None:  # noqa: B027 - most have nothing to add
        """Look once at the session made ready. Raises BadConfig for what could not be learned in it."""

    def facts(self, session: Session) -> Mapping[str, object]:
        """Numbers to show with each step, beside loss and rate."""
        return {}
