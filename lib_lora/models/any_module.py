"""Any torch model as something that networks can be trained on, applied to and merged into."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from lib_lora.errors import BadConfig
from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.ports import Slot

VERSION = "module"  # of no table of names


class ModuleModel:
    """`ports.Patchable` over a module: the layers whose paths match one of `patterns` (regular expressions; "" is all).

    A layer is whatever keeps a weight of 1, 2 or 4 dimensions in a parameter `weight`; the fused projection of an
    `nn.MultiheadAttention` at `path` is three, `path.q_proj`, `path.k_proj` and `path.v_proj`. A layer's key is
    `LayerKey("unet", path)`, and its name in files the path; see `names` and `known`.
    Raises BadConfig if nothing matches.
    """

    version = VERSION

    def __init__(self, net: nn.Module, patterns: Sequence[str] = ("",), name: str = "model") -> None:
        self.net, self.name = net, name
        wanted = [_compiled(pattern) for pattern in patterns]
        places = dict(_places(net))
        self._slots = {
            LayerKey(UNET, path): slot for path, slot in places.items() if any(one.search(path) for one in wanted)
        }
        if not self._slots:
            raise BadConfig(
                f"no layer of {name!r} matches {', '.join(map(repr, patterns)) or 'no pattern'}; it has "
                f"{', '.join(list(places)[:5]) or 'none'}{', ...' if len(places) > 5 else ''}"
            )

    def slots(self) -> Mapping[LayerKey, Slot]:
        """Where each layer's weight and bias are."""
        return self._slots

    def modules_by_key(self) -> Mapping[LayerKey, nn.Module]:
        """The layers' modules."""
        return {key: slot.module for key, slot in self._slots.items()}

    def roots(self) -> Mapping[str, nn.Module]:
        """{"unet": the module}."""
        return {UNET: self.net}

    def base_identity(self) -> str:
        """The module object: whoever loads other weights into it makes a new ModuleModel."""
        return f"{self.name}:{id(self.net):x}:{id(self):x}"

    def names(self) -> Mapping[LayerKey, str]:
        """What files call each layer, for `codec.write_network`."""
        return {key: key.path for key in self._slots}

    def known(self) -> Mapping[str, LayerKey]:
        """The inverse of `names`, for `codec.read_network`."""
        return {key.path: key for key in self._slots}


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise BadConfig(f"{pattern!r} is no regular expression ({error}); write a dot as \\.") from None


def _places(net: nn.Module) -> Iterator[tuple[str, Slot]]:
    for path, module in net.named_modules():
        weight = module._parameters.get("weight")
        if path and weight is not None and weight.dim() in (1, 2, 4):
            yield path, Slot(module, bias="bias" if "bias" in module._parameters else None)
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            width = module.embed_dim
            for third, name in enumerate(("q_proj", "k_proj", "v_proj")):
                rows = slice(third * width, (third + 1) * width)
                yield f"{path}.{name}" if path else name, Slot(module, "in_proj_weight", "in_proj_bias", rows)
