"""What a run trains: parameters by name, their learning rates, and how they take part in the model's work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from torch import nn

from lib_lora.ports import DiffusionModel
from lib_lora.train.sections import OptimizerSection

Groups = list[dict[str, Any]]


class Learner(ABC):
    """Something that is trained, float32 on the model's device; several may take part in one run."""

    kind: ClassVar[str]  # what its tensors are called by in the state of a run

    @abstractmethod
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Everything that is trained, by names that are the same in every run of the same job."""

    @abstractmethod
    def groups(self, section: OptimizerSection) -> Groups:
        """Every parameter once, in groups {"params": [...], "lr": rate, "base_lr": rate}, always in the same order.

        A group of a text encoder says {"text": True}: it stands still after `training.te_fraction` of the run. One of
        new words says {"words": True}. Text states depend on both.
        """

    @abstractmethod
    def attached(self, model: DiffusionModel, strength: float = 1.0) -> AbstractContextManager[None]:
        """While open, `model` computes with what is trained; afterwards it is as before.

        A strength other than 1 is for networks; whatever knows none takes part in full.
        """

    def begin_step(self, seed: int, step: int) -> None:  # noqa: B027 - most have nothing to do
        """Draw whatever is drawn once for a step, keyed by seed and step (`keyed.generator`)."""

    def after_step(self) -> None:  # noqa: B027
        """Put limits on the parameters after the optimizer's step."""
