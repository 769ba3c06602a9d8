"""The webui's built-in Lora extension: taking the tag from it and giving it back, without a trace in the model."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import torch

from lib_lora.host.detect import Webui

log = logging.getLogger(__name__)

TAG, ALIAS = "lora", "lyco"
CLASSES = ("Linear", "Conv2d", "GroupNorm", "LayerNorm", "MultiheadAttention")
METHODS = {"forward": "forward", "_load_from_state_dict": "load_state_dict"}  # torch's name: the built-in's suffix


class NothingToUndo:
    """Stands where the built-in keeps its patches: its unload finds an `undo`, its functions find the originals."""

    def __init__(self, originals: dict[str, Any]) -> None:
        self.__dict__.update(originals)

    def undo(self) -> None:
        """Nothing: the patches were taken off before."""


class BuiltinLora:
    """The built-in's modules as they lie in `sys.modules`, if it is enabled."""

    def __init__(self, webui: Webui) -> None:
        self.webui = webui

    @property
    def networks(self) -> Any:
        """The built-in's module `networks`, or None where it is disabled or another package has that name."""
        module = sys.modules.get("networks")
        return module if hasattr(module, "network_Linear_forward") and hasattr(module, "available_networks") else None

    @property
    def tag(self) -> Any:
        """The built-in's own extra network object, or None."""
        return getattr(self.networks, "extra_network_lora", None)

    def owns_tag(self) -> bool:
        """Whether `<lora:...>` is the built-in's, or nobody's, at the moment."""
        owner = self.webui.extra_networks.extra_network_registry.get(TAG)
        return owner is None or owner is self.tag

    def take(self, ours: Any) -> bool:
        """Make `ours` the owner of tag and alias; returns False if a third extension owns the tag, which is left alone.

        May be called at any time and any number of times.
        """
        registry = self.webui.extra_networks
        owner = registry.extra_network_registry.get(TAG)
        if owner is not ours:
            if not self.owns_tag() and getattr(owner, "is_lorakit", False) is False:
                return False
            registry.register_extra_network(ours)
        registry.register_extra_network_alias(ours, ALIAS)
        self.release()
        return True

    def give_back(self) -> bool:
        """The built-in owns tag and patches again; returns False if there is no built-in."""
        if self.tag is None:
            return False
        registry = self.webui.extra_networks
        registry.register_extra_network(self.tag)
        registry.register_extra_network_alias(self.tag, ALIAS)
        if isinstance(self.networks.originals, NothingToUndo):
            self.networks.originals = sys.modules["lora_patches"].LoraPatches()
        return True

    def release(self) -> None:
        """Take the built-in's networks out of the model and its patches off torch's classes.

        If another extension has patched on top, the patches stay: with no network loaded they do nothing.
        """
        networks = self.networks
        if networks is None:
            return
        if networks.loaded_networks:
            networks.load_networks([])
        for module in self._merged():
            with torch.no_grad():
                networks.network_apply_weights(module)
            networks.network_reset_cached_weight(module)  # frees its copy of the weights
        if not isinstance(networks.originals, NothingToUndo) and self._on_top():
            networks.originals.undo()
            networks.originals = NothingToUndo(
                {f"{name}_{suffix}": getattr(getattr(torch.nn, name), method) for name, method, suffix in _patched()}
            )

    def rescan(self) -> None:
        """Let its cards, API and paste handlers see new files."""
        if self.networks is not None:
            self.networks.list_available_networks()

    def short_hash(self, name: str) -> str | None:
        """The hash that infotext carries for the network called `name` (file name or alias), if it is known."""
        if self.networks is None:
            return None
        known = self.networks.available_networks.get(name) or self.networks.available_network_aliases.get(name)
        if known is None:
            return None
        known.read_hash()
        return known.shorthash or None

    def _merged(self) -> list[Any]:
        """Modules that carry, or once carried, its networks; the current model is not loaded for this."""
        model = self.webui.sd_models.model_data.sd_model
        mapping = getattr(model, "network_layer_mapping", None) or {}
        return [m for m in mapping.values() if getattr(m, "network_weights_backup", None) is not None]

    def _on_top(self) -> bool:
        return all(
            getattr(getattr(torch.nn, name), method) is getattr(self.networks, f"network_{name}_{suffix}")
            for name, method, suffix in _patched()
        )


def _patched() -> Iterator[tuple[str, str, str]]:
    """(class name, method, suffix in the built-in's names) of each patch."""
    for name in CLASSES:
        for method, suffix in METHODS.items():
            yield name, method, suffix
