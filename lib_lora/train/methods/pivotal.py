"""Networks with new words: pivotal tuning, and Custom Diffusion."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lib_lora.networks.network import Network
from lib_lora.ports import DiffusionModel
from lib_lora.train.captions import Dataset
from lib_lora.train.config import JobConfig
from lib_lora.train.learners import Learner
from lib_lora.train.methods.base import Product
from lib_lora.train.methods.inversion import embedding_products, tokens_of, write_embeddings
from lib_lora.train.methods.network import NetworkMethod, network_of
from lib_lora.train.network_file import write_trained_network
from lib_lora.train.sections import NetworkSection
from lib_lora.train.tokens import new_tokens, refuse_unread, refuse_unsaid

if TYPE_CHECKING:
    from lib_lora.train.session import Session


class PivotalTuning(NetworkMethod):
    """A network and new words, trained together (after Roich et al. 2021, https://arxiv.org/abs/2106.05744).

    The words are bundled in the network's file, so that its tag alone brings them, and written as embeddings too.
    """

    name = "pivotal_tuning"

    def products(self, job: JobConfig, stem: str) -> tuple[Product, ...]:
        return (*super().products(job, stem), *embedding_products(job, stem))

    def dataset(self, job: JobConfig) -> Dataset:
        """Pictures whose captions say the new words."""
        return refuse_unsaid(job, super().dataset(job))

    def check(self, session: Session) -> None:
        refuse_unread(session)

    def learners(self, job: JobConfig, model: DiffusionModel) -> tuple[Learner, ...]:
        return (*super().learners(job, model), new_tokens(job, model))

    def write(self, session: Session, folder: Path, products: Sequence[Product], step: int) -> None:
        tokens = tokens_of(session)
        bundled = {word: tokens.by_encoder(word) for word in tokens.vectors if session.job.method.bundle}
        network = Network(session.job.output.name, network_of(session).layers, embeddings=bundled)
        write_trained_network(session, folder / products[0].name, step, network)
        write_embeddings(session, folder, products[1:], step)


class CustomDiffusion(PivotalTuning):
    """Keys and values of cross-attention in full, and a new word (Kumari et al. 2022, https://arxiv.org/abs/2212.04488)."""

    name = "custom_diffusion"

    def section(self, job: JobConfig) -> NetworkSection:
        """Full deltas of the UNet's cross-attention keys and values, nothing else."""
        return dataclasses.replace(
            job.network,
            type="full",
            targets="cross_attention_kv",
            include=(),
            dora=False,
            train_unet=True,
            train_text_encoder=False,
            train_text_encoder_2=False,
            train_norms=False,
            train_bias=False,
        )
