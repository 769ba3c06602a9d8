"""The webui's built-in Lora extension: taking the tag from it and giving it back, without a trace in the model."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lib_lora.host.detect import Webui

log = logging.getLogger(__name__)

TAG, ALIAS = "lora", "lyco"
KEY = "lora_patches"  # under which the webui's `patches` keeps what the built-in replaced
# (class, method, how the built-in calls the method) of each patch
METHODS = tuple(
    (name, *pair)
    for name in ("Linear", "Conv2d", "GroupNorm", "LayerNorm", "MultiheadAttention")
    for pair in (("forward", "forward"), ("_load_from_state_dict", "load_state_dict"))
)
BACKUPS = ("network_weights_backup", "network_bias_backup")


class Patches:
    """Stands where the built-in keeps torch's own methods: its functions find them here, its unload finds an `undo`.

    Each method is looked at alone: where another extension has put its own function on top, that one stays. Whoever
    took the bare method in the meantime and puts it back later does no harm either.
    """

    def __init__(self, webui: Webui, networks: Any) -> None:
        self.webui = webui
        self.networks = networks
        self.__dict__.update(
            {f"{name}_{suffix}": getattr(networks.originals, f"{name}_{suffix}") for name, _, suffix in METHODS}
        )

    def put_on(self) -> None:
        """The built-in's functions in place of torch's."""
        for cls, method, attribute in self._places():
            if getattr(cls, method) is getattr(self, attribute):
                self._patches.originals[KEY].pop((cls, method), None)
                self._patches.patch(KEY, cls, method, getattr(self.networks, f"network_{attribute}"))

    def take_off(self) -> None:
        """Torch's methods in place of the built-in's functions."""
        for cls, method, attribute in self._places():
            if getattr(cls, method) is getattr(self.networks, f"network_{attribute}"):
                self._patches.originals[KEY].pop((cls, method), None)
                setattr(cls, method, getattr(self, attribute))

    def undo(self) -> None:
        """Torch's methods, whoever patched on top: what the built-in does when scripts are unloaded."""
        for cls, method, attribute in self._places():
            self._patches.originals[KEY].pop((cls, method), None)
            setattr(cls, method, getattr(self, attribute))

    @property
    def _patches(self) -> Any:
        return self.webui.patches

    def _places(self) -> Iterator[tuple[type, str, str]]:
        for name, method, suffix in METHODS:
            yield getattr(torch.nn, name), method, f"{name}_{suffix}"


class Idle:
    """Stands for the built-in's function that changes a layer's weights, and keeps it.

    While it stands there nothing is applied twice, whatever still calls the built-in's forwards and whatever its list
    of loaded networks tells other extensions.
    """

    def __init__(self, original: Callable[[Any], Any]) -> None:
        self.original = original

    def __call__(self, _module: Any) -> None:
        """Nothing."""


class BuiltinLora:
    """The built-in's modules as they lie in `sys.modules`, if it is enabled."""

    def __init__(self, webui: Webui) -> None:
        self.webui = webui

    @property
    def enabled(self) -> bool:
        """Whether the webui runs it. Its modules may outlast it: a UI reload after disabling leaves them imported."""
        return any(e.is_builtin and e.name.lower() == TAG for e in self.webui.extensions.active())

    @property
    def networks(self) -> Any:
        """The built-in's module `networks`, or None where it is disabled or another package has that name."""
        module = sys.modules.get("networks")
        ours = hasattr(module, "network_Linear_forward") and hasattr(module, "available_networks")
        return module if ours and self.enabled else None

    @property
    def tag(self) -> Any:
        """The built-in's own extra network object, or None."""
        return getattr(self.networks, "extra_network_lora", None)

    @property
    def released(self) -> bool:
        """Whether its list of loaded networks is ours to keep."""
        return isinstance(getattr(self.networks, "network_apply_weights", None), Idle)

    def take(self, ours: Any, others: Sequence[type] = ()) -> bool:
        """Make `ours` the owner of tag and alias; returns False if a third extension owns the tag, which is left alone.

        Owners of one of the classes `others` are replaced as the built-in's is. May be called at any time and any
        number of times.
        """
        registry = self.webui.extra_networks
        owner = registry.extra_network_registry.get(TAG)
        if owner is not ours:
            known = owner is None or owner is self.tag or isinstance(owner, tuple(others))
            if not known and getattr(owner, "is_lorakit", False) is False:
                return False
            registry.register_extra_network(ours)
        registry.register_extra_network_alias(ours, ALIAS)
        self.release()
        return True

    def give_back(self) -> bool:
        """The built-in owns tag and patches again; returns False if there is no built-in."""
        theirs = self.tag
        if theirs is None:
            return False
        registry = self.webui.extra_networks
        registry.register_extra_network(theirs)
        registry.register_extra_network_alias(theirs, ALIAS)
        self.lend()
        return True

    def release(self) -> None:
        """Take the built-in's networks out of every loaded model, its function away, its patches off torch's classes.

        Where another extension has patched on top, a patch stays: without the function it does nothing.
        """
        networks = self.networks
        if networks is None:
            return
        if not self.released:
            networks.load_networks([])
            for module in self._merged():
                with torch.no_grad():
                    networks.network_apply_weights(module)
                networks.network_reset_cached_weight(module)  # frees its copy of the weights
                module.network_bias_backup = None  # 1.6 keeps that one, also past the next checkpoint
            networks.network_apply_weights = Idle(networks.network_apply_weights)
        if not isinstance(networks.originals, Patches):  # at the start, and after its script ran again
            networks.originals = Patches(self.webui, networks)
        networks.originals.take_off()

    def lend(self) -> None:
        """Function and patches are in place again: whoever calls the built-in's tag object is served by it."""
        networks = self.networks
        if networks is None:
            return
        self.leave()
        if isinstance(networks.originals, Patches):
            networks.originals.put_on()

    def leave(self) -> None:
        """Before scripts are loaded anew: the function back, but not the patches, which its own script puts on."""
        networks = sys.modules.get("networks")  # also where it is disabled by now
        idle = getattr(networks, "network_apply_weights", None)
        if isinstance(idle, Idle):
            networks.loaded_networks.clear()  # type: ignore[union-attr]
            networks.network_apply_weights = idle.original  # type: ignore[union-attr]

    def publish(self, loaded: Sequence[Any]) -> None:
        """Write the built-in's list of loaded networks, which other extensions read."""
        if self.released:
            self.networks.loaded_networks[:] = loaded

    def stand_in(self, name: str, path: Path) -> Any:
        """An object of the built-in's class for a network that we applied: it has a name and a file, but no layers."""
        networks = self.networks
        made = networks.network.Network(name, self._on_disk(path))
        made.mentioned_name = name
        return made

    def rescan(self) -> None:
        """Let its cards, API and paste handlers see new files."""
        if self.networks is not None:
            self.networks.list_available_networks()

    def _on_disk(self, path: Path) -> Any:
        """The built-in's record of a file, made if it has none."""
        networks, file = self.networks, str(path)
        named = networks.available_networks.get(path.stem)
        if named is not None and named.filename == file:
            return named
        known = (entry for entry in list(networks.available_networks.values()) if entry.filename == file)
        return next(known, None) or networks.network.NetworkOnDisk(path.stem, file)

    def _merged(self) -> Iterator[Any]:
        """Modules that carry, or once carried, its networks, of each model in memory; none is loaded for this."""
        data = self.webui.sd_models.model_data
        models = [data.sd_model, *getattr(data, "loaded_sd_models", ())]
        for model in {id(model): model for model in models}.values():
            mapping = getattr(model, "network_layer_mapping", None) or {}
            yield from (m for m in mapping.values() if any(getattr(m, name, None) is not None for name in BACKUPS))
