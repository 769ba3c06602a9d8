"""The best low-rank network for a change of full rank: by singular value decomposition, with what is lost told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lib_lora.errors import BadConfig, BadFile, WrongBaseModel
from lib_lora.files.codec import write_network
from lib_lora.files.tensors import tensor_reader
from lib_lora.keys.checkpoint import checkpoint_pieces
from lib_lora.keys.layer_key import LayerKey
from lib_lora.networks.base import Layer
from lib_lora.networks.lora import Lora
from lib_lora.networks.network import Network
from lib_lora.tools.merge import piece_of

SAME = 1e-7  # of a weight's norm: what rounding alone changes


@dataclass(frozen=True)
class Extracted:
    """A LoRA, and how far it is from the whole change: ||change - LoRA|| / ||change|| over all layers.

    `left_out` counts the changed norms and biases, which a LoRA cannot hold; they are part of the residual.
    """

    network: Network
    residual: float
    left_out: int


def low_rank(change: Tensor, rank: int) -> tuple[Lora, float, float]:
    """The nearest LoRA of at most `rank` to a change (out, in, ...), and the squared norms of what is lost and of all.

    Eckart and Young 1936: the leading singular vectors. They are taken of the smaller Gram matrix in float64, where
    squaring the condition costs nothing that matters at these ranks. alpha = rank, so the scale is 1.
    """
    flat = change.detach().double().flatten(1)  # (out, in * kh * kw)
    rows = flat.shape[0] <= flat.shape[1]
    gram = flat @ flat.t() if rows else flat.t() @ flat
    rank = min(rank, gram.shape[0])
    vectors = torch.linalg.eigh(gram).eigenvectors[:, -rank:].flip(-1)  # (n, rank), the largest first
    up, down = (vectors, vectors.t() @ flat) if rows else (flat @ vectors, vectors.t())
    # Both factors as large as each other, so that neither is lost in half precision.
    size = (down if rows else up).norm(dim=1 if rows else 0).clamp(min=1e-30).sqrt()
    up, down = (up * size, down / size[:, None]) if rows else (up / size, down * size[:, None])
    lost = float((flat - up @ down).square().sum())
    shape = (*up.shape, *(1,) * (change.dim() - 2))
    layer = Lora(up.float().reshape(shape), down.float().reshape(rank, *change.shape[1:]), float(rank))
    return layer, lost, float(flat.square().sum())


def extract_layers(layers: Mapping[LayerKey, Layer], weights: Mapping[LayerKey, Tensor], rank: int) -> Extracted:
    """A LoRA of `rank` for layers of any type; `weights` are their base weights."""
    found: dict[LayerKey, Layer] = {}
    lost = whole = 0.0
    left_out = 0
    with torch.no_grad():
        for key, layer in layers.items():
            if layer.changes_bias:
                change = layer.bias_delta(torch.zeros(weights[key].shape[0]))
                lost, whole = lost + float(change.square().sum()), whole + float(change.square().sum())
                left_out += 1
            if not layer.changes_weight:
                continue
            delta = layer.delta(weights[key])
            if delta.dim() < 2:
                lost, whole = lost + float(delta.square().sum()), whole + float(delta.square().sum())
                left_out += 1
                continue
            if not bool(delta.any()):
                continue
            found[key], less, all_of = low_rank(delta, rank)
            lost, whole = lost + less, whole + all_of
    if not found:
        raise BadConfig("nothing was changed, so there is no network to extract; train longer or compare other files")
    return Extracted(Network("extracted", found), (lost / whole) ** 0.5, left_out)


def _refuse_strange(name: str, change: Tensor) -> None:
    if not bool(torch.isfinite(change).all()):
        raise BadFile(f"{name} holds NaN or infinity in one of the checkpoints; choose whole ones")


def extract(tuned: Path, base: Path, out: Path, rank: int, dtype: torch.dtype = torch.float16) -> Extracted:
    """Write the LoRA of `rank` that leads from checkpoint `base` to checkpoint `tuned`. One weight in memory at a time.

    Raises BadFile (also for NaN), BadConfig (nothing differs), WrongBaseModel (checkpoints of different models).
    """
    found: dict[LayerKey, Layer] = {}
    lost = whole = 0.0
    left_out = 0
    with tensor_reader(tuned) as (header, read), tensor_reader(base) as (base_header, base_read):
        shared = [name for name in header.tensors if name in base_header.tensors]
        for name in shared:
            pieces = checkpoint_pieces(name, header.tensors[name].shape)
            if not pieces:
                continue
            if header.tensors[name].shape != base_header.tensors[name].shape:
                raise WrongBaseModel(
                    f"{name} has another shape in {tuned.name} than in {base.name}; choose its true base"
                )
            old, new = base_read(name), read(name)
            if torch.equal(old.to(new.dtype), new) or torch.equal(new.to(old.dtype), old):
                continue  # another number format alone
            before, after = old.double(), new.double()
            _refuse_strange(name, after - before)
            for piece in pieces:
                one = piece_of(after, piece) - piece_of(before, piece)
                if float(one.norm()) <= SAME * float(before.norm()):
                    continue
                if piece.parameter == "bias" or one.dim() < 2:
                    size, left_out = float(one.square().sum()), left_out + 1
                    lost, whole = lost + size, whole + size
                    continue
                found[piece.key], less, all_of = low_rank(one, rank)
                lost, whole = lost + less, whole + all_of
    if not found:
        raise BadConfig(
            f"{tuned.name} and {base.name} do not differ in any layer a LoRA can change; choose other files"
        )
    result = Extracted(Network(out.stem, found), (lost / whole) ** 0.5, left_out)
    write_network(out, result.network, {"lorakit_residual": f"{result.residual:.6f}"}, dtype)
    return result
