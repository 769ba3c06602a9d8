"""A trained network as the file that everyone reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lib_lora.files.codec import network_tensors, write_network
from lib_lora.files.hashes import add_hashes
from lib_lora.files.metadata import LORA, TrainingRecord, build_metadata
from lib_lora.networks.base import innermost
from lib_lora.networks.lora import Lora
from lib_lora.networks.network import Network
from lib_lora.train.metadata import network_section, record_of
from lib_lora.train.sidecar import latest_sample, thumbnail

if TYPE_CHECKING:
    from lib_lora.train.session import Session

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def write_trained_network(session: Session, path: Path, step: int, network: Network) -> None:
    """Write a network in the job's number format, with all that is known of its training and its own metadata.

    Its thumbnail is the run's latest sample picture, if `path` is in the run's folder and there is one.
    """
    dtype = DTYPES[session.job.output.dtype]
    ordered = {key: network.layers[key] for key in sorted(network.layers)}
    network = dataclasses.replace(network, layers=ordered, version=session.model.version)
    cover = latest_sample(path.parent)
    record = dataclasses.replace(
        _as_extracted(session, network, record_of(session, step, LORA)), thumbnail=thumbnail(cover) if cover else ""
    )
    metadata = {**build_metadata(record), **network.metadata}
    metadata = add_hashes(metadata, network_tensors(network, dtype))
    metadata["modelspec.hash_sha256"] = f"0x{metadata['sshs_model_hash']}"
    write_network(path, network, metadata, dtype)


def _as_extracted(session: Session, network: Network, record: TrainingRecord) -> TrainingRecord:
    """The record, of a LoRA where a full fine-tune is written as one."""
    lora = any(isinstance(innermost(layer), Lora) for layer in network.layers.values())
    if network_section(session).type != "full" or not lora:
        return record
    rank = session.job.method.as_lora
    return dataclasses.replace(record, rank=rank, alpha=float(rank), network_module="networks.lora", network_args={})
