"""Token embeddings that come inside network files: known to the webui while their network is in the prompt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lib_lora.host.detect import Webui
from lib_lora.networks.network import Network

log = logging.getLogger(__name__)

CLIP_L, CLIP_G = "clip_l", "clip_g"


class BundledEmbeddings:
    """Registers embeddings in the webui's database and takes exactly those out again."""

    def __init__(self, webui: Webui, hashes_wanted: Callable[[], bool]) -> None:
        self.webui = webui
        self.hashes_wanted = hashes_wanted
        self._ours: dict[str, Any] = {}

    def show(self, networks: Iterable[Network], sd_model: Any) -> list[str]:
        """Make the embeddings of `networks`, and no others of ours, known; returns what the user should be told.

        A token that the user has in the embeddings folder, or whose width is not the model's, is left out.
        """
        wanted = {token: (n, tensors) for n in networks for token, tensors in getattr(n, "embeddings", {}).items()}
        self.hide(keep=wanted)
        database = self._database()
        told = []
        for token, (network, tensors) in wanted.items():
            present, ours = database.word_embeddings.get(token), self._ours.get(token)
            if ours is not None and present is ours and ours.source is tensors:
                ours.shorthash = self._shown_hash(network)
                continue
            if present is not None and present is not ours:
                told.append(f"{network.name}: its embedding {token!r} is left out, you have one of that name")
                continue
            made = self._make(token, network, tensors)
            if database.expected_shape not in (-1, made.shape):
                told.append(f"{network.name}: its embedding {token!r} is made for another base model")
                continue
            database.register_embedding(made, sd_model)
            self._ours[token] = made
        return told

    def hide(self, keep: Iterable[str] = ()) -> None:
        """Take ours out of the database, except those called `keep`. Works without a model as well."""
        database = self._database()
        for token in [token for token in self._ours if token not in keep]:
            made = self._ours.pop(token)
            if database.word_embeddings.get(token) is made:
                del database.word_embeddings[token]
            for first, found in list(database.ids_lookup.items()):
                rest = [(ids, embedding) for ids, embedding in found if embedding is not made]
                if rest:
                    database.ids_lookup[first] = rest
                else:
                    del database.ids_lookup[first]

    def _database(self) -> Any:
        return self.webui.sd_hijack.model_hijack.embedding_db

    def _make(self, token: str, network: Network, tensors: Mapping[str, Tensor]) -> Any:
        """The webui's own object, as it makes one of a file: 2-D vectors in float32, by encoder where there are two."""
        device = self.webui.devices.device
        vectors = {encoder: _rows(tensor).to(device=device, dtype=torch.float32) for encoder, tensor in tensors.items()}
        both = CLIP_G in vectors and CLIP_L in vectors
        made = self.webui.textual_inversion.textual_inversion.Embedding(
            vectors if both else next(iter(vectors.values())), token
        )
        made.vectors = next(iter(vectors.values())).shape[0]
        made.shape = sum(tensor.shape[-1] for tensor in vectors.values())
        made.filename = f"{network.name}/{token}"
        made.shorthash = self._shown_hash(network)
        made.source = tensors
        return made

    def _shown_hash(self, network: Network) -> str | None:
        """Infotext names the network in place of a hash."""
        return network.name if self.hashes_wanted() else None


def _rows(tensor: Tensor) -> Tensor:
    return tensor.detach()[None] if tensor.ndim == 1 else tensor.detach()
