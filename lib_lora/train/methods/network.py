"""A network: layers beside the frozen base's, saved as one file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lib_lora.networks.network import Network
from lib_lora.ports import DiffusionModel
from lib_lora.train import keyed
from lib_lora.train.config import JobConfig
from lib_lora.train.layers import layers_for
from lib_lora.train.learners import Learner
from lib_lora.train.methods.base import NETWORK, Method, Product
from lib_lora.train.network_file import write_trained_network
from lib_lora.train.network_learner import NetworkLearner
from lib_lora.train.sections import NetworkSection

if TYPE_CHECKING:
    from lib_lora.train.session import Session


class NetworkMethod(Method):
    """LoRA, LyCORIS and their relatives: whatever `network.type` says."""

    name = "network"

    def section(self, job: JobConfig) -> NetworkSection:
        """The network's settings; methods that are networks of a fixed kind change some."""
        return job.network

    def products(self, job: JobConfig, stem: str) -> tuple[Product, ...]:
        return (Product(NETWORK, f"{stem}.safetensors"),)

    def learners(self, job: JobConfig, model: DiffusionModel) -> tuple[Learner, ...]:
        section = self.section(job)
        layers = layers_for(model, section, keyed.generator(job.training.seed, "layers"))
        return (NetworkLearner(model, section, layers),)

    def write(self, session: Session, folder: Path, products: Sequence[Product], step: int) -> None:
        network = Network(session.job.output.name, network_of(session).layers)
        write_trained_network(session, folder / products[0].name, step, network)


def network_of(session: Session) -> NetworkLearner:
    """The network that a session trains."""
    return next(learner for learner in session.learners if isinstance(learner, NetworkLearner))


def of_the_unet(network: NetworkSection) -> NetworkSection:
    """The same network without layers of text encoders."""
    return dataclasses.replace(network, train_unet=True, train_text_encoder=False, train_text_encoder_2=False)
