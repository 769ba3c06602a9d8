"""DreamBooth: every weight of the UNet, and of the text encoders if wanted, is trained; a checkpoint comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lib_lora.errors import BadConfig
from lib_lora.files.metadata import build_metadata
from lib_lora.networks.network import Network
from lib_lora.ports import DiffusionModel
from lib_lora.tools.tuned import Tuned, refuse_unwritable
from lib_lora.train.config import JobConfig
from lib_lora.train.learners import Learner
from lib_lora.train.methods.base import CHECKPOINT, NETWORK, Product
from lib_lora.train.methods.network import NetworkMethod, network_of
from lib_lora.train.network_file import DTYPES, write_trained_network
from lib_lora.train.network_learner import NetworkLearner
from lib_lora.train.sections import NetworkSection
from lib_lora.train.targets import weight_of

if TYPE_CHECKING:
    from lib_lora.train.session import Session

TEXT_NORMS = r"^te\d:.*(layer_norm|ln_)"


class DreamBooth(NetworkMethod):
    """Full fine-tuning (Ruiz et al. 2022, https://arxiv.org/abs/2208.12242).

    What is trained is the change of each weight, in float32 beside the base: the same steps as on float32 copies of the
    weights, for a half base too, and the base itself stays as it is. Weight decay draws to the base, not to zero.
    """

    name = "dreambooth"

    def section(self, job: JobConfig) -> NetworkSection:
        """Full deltas of everything."""
        exclude = (*job.network.exclude, TEXT_NORMS) if job.training.freeze_norms else job.network.exclude
        return dataclasses.replace(
            job.network, type="full", targets="all", exclude=exclude, dora=False, train_norms=True, train_bias=True
        )

    def products(self, job: JobConfig, stem: str) -> tuple[Product, ...]:
        found = [Product(CHECKPOINT, f"{stem}.safetensors")] if job.method.save_checkpoint else []
        if job.method.as_lora:
            found.append(Product(NETWORK, f"{stem}-lora.safetensors" if found else f"{stem}.safetensors"))
        return tuple(found)

    def learners(self, job: JobConfig, model: DiffusionModel) -> tuple[Learner, ...]:
        if not self.products(job, job.output.name):
            raise BadConfig(
                "method.save_checkpoint = false and method.as_lora = 0 leave nothing to save; "
                "give as_lora a rank, e.g. 32, or save the checkpoint"
            )
        learners = super().learners(job, model)
        (learner,) = learners
        if job.method.save_checkpoint and isinstance(learner, NetworkLearner):  # told now, not after hours
            refuse_unwritable(Tuned(model, learner.layers, DTYPES[job.output.dtype], job.base.use_ema))
        return learners

    def write(self, session: Session, folder: Path, products: Sequence[Product], step: int) -> None:
        from lib_lora.tools.extract import extract_layers
        from lib_lora.tools.tuned import write_tuned
        from lib_lora.train.metadata import record_of

        job, learner = session.job, network_of(session)
        for product in products:
            if product.place == CHECKPOINT:
                tuned = Tuned(session.model, learner.layers, DTYPES[job.output.dtype], job.base.use_ema)
                facts = build_metadata(record_of(session, step))
                kept = {name: value for name, value in facts.items() if name.startswith("modelspec.")}
                write_tuned(folder / product.name, tuned, kept)
                continue
            weights = {key: weight_of(learner.slots[key]) for key in learner.layers}
            found = extract_layers(learner.layers, weights, job.method.as_lora)
            told = {"lorakit_residual": f"{found.residual:.6f}", "lorakit_left_out": str(found.left_out)}
            network = Network(job.output.name, found.network.layers, told)
            write_trained_network(session, folder / product.name, step, network)
