"""A hypernetwork in the webui's own format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lib_lora.ports import DiffusionModel
from lib_lora.train import keyed
from lib_lora.train.config import JobConfig
from lib_lora.train.hypernetwork import HypernetworkLearner, write_hypernetwork
from lib_lora.train.learners import Learner
from lib_lora.train.methods.base import HYPERNETWORK, Method, Product

if TYPE_CHECKING:
    from lib_lora.train.session import Session


class HypernetworkMethod(Method):
    """Nets before the keys and values of the UNet's attention; the webui applies the file by <hypernet:name:1>."""

    name = "hypernetwork"

    def products(self, job: JobConfig, stem: str) -> tuple[Product, ...]:
        return (Product(HYPERNETWORK, f"{stem}.pt"),)

    def learners(self, job: JobConfig, model: DiffusionModel) -> tuple[Learner, ...]:
        return (HypernetworkLearner(model, job.method, keyed.generator(job.training.seed, "layers")),)

    def write(self, session: Session, folder: Path, products: Sequence[Product], step: int) -> None:
        (learner,) = session.learners
        assert isinstance(learner, HypernetworkLearner)
        legacy, _ = session.base_hashes()
        facts = {
            "name": Path(products[0].name).stem,
            "step": step,
            "sd_checkpoint": legacy or None,
            "sd_checkpoint_name": session.model.name,
        }
        write_hypernetwork(folder / products[0].name, learner, facts)
