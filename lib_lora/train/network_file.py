"""A trained network as the file that everyone reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lib_lora.files.codec import network_tensors, write_network
from lib_lora.files.hashes import add_hashes
from lib_lora.files.metadata import build_metadata
from lib_lora.networks.network import Network
from lib_lora.train.metadata import record_of

if TYPE_CHECKING:
    from lib_lora.train.session import Session

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def write_trained_network(session: Session, path: Path, step: int, network: Network) -> None:
    """Write a network in the job's number format, with all that is known of its training and its own metadata."""
    dtype = DTYPES[session.job.output.dtype]
    network = dataclasses.replace(network, layers={key: network.layers[key] for key in sorted(network.layers)})
    metadata = {**build_metadata(record_of(session, step)), **network.metadata}
    write_network(path, network, add_hashes(metadata, network_tensors(network, dtype)), dtype)
