"""DyLoRA: a LoRA trained such that its first ranks alone are one too. https://arxiv.org/abs/2210.07558

In a step one unit of ranks learns; those before it are used as they are, those after it not at all. As a file it is a
LoRA, and `dyn` takes the first ranks at the scale of all of them, alpha / rank: that is the scale trained with here.
(LyCORIS trains with alpha / units, kohya with alpha / rank * sqrt(rank / ranks); neither's file says so.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.networks.base import Factors, LayerSpec
from lib_lora.networks.lora import Lora


class DyLora(Lora):
    """A LoRA without a core whose factors are kept by unit, so that an optimizer leaves units without gradient alone.

    `unit` ranks each: ups[i] (out, unit) and downs[i] (unit, in, ...). `chosen` is the unit that learns while
    gradients are computed; without gradients, or while it is None, all ranks take part.
    """

    kind = "dylora"
    second = frozenset({"ups"})

    def __init__(self, up: Tensor, down: Tensor, alpha: float | None = None, unit: int = 1) -> None:
        nn.Module.__init__(self)
        rank = int(down.shape[0])
        if unit < 1 or rank % unit:
            raise BadConfig(f"network.unit = {unit} does not divide rank {rank}; choose one of its divisors")
        self.ups = nn.ParameterList([nn.Parameter(part.clone()) for part in up.split(unit, dim=1)])
        self.downs = nn.ParameterList([nn.Parameter(part.clone()) for part in down.split(unit)])
        self.mid = None
        self.rank, self.unit = rank, unit
        self.alpha = float(rank) if alpha is None else float(alpha)
        self.chosen: int | None = None

    @property
    def up(self) -> Tensor:  # type: ignore[override]
        """What of the second factor takes part now: (out, ranks, ...)."""
        return self._now(self.ups, 1)

    @property
    def down(self) -> Tensor:  # type: ignore[override]
        """What of the first factor takes part now: (ranks, in, ...)."""
        return self._now(self.downs, 0)

    @property
    def scale(self) -> float:
        """alpha / all ranks, however many take part."""
        return self.alpha / self.rank

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        """Never: a file's layer is a LoRA, see `of`."""
        return False

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> DyLora:
        return cls.of(Lora.from_tensors(tensors), 1)

    @classmethod
    def of(cls, lora: Lora, unit: int) -> DyLora:
        """A LoRA without a core, to be trained on in units. Raises BadConfig for one with a core."""
        if lora.mid is not None:
            raise BadConfig("DyLoRA knows no Tucker form; set network.tucker = false, or network.type = 'locon'")
        return cls(lora.up.detach(), lora.down.detach(), lora.alpha, unit)

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> DyLora:
        """A new layer; the option `unit` (1 without it) must divide the rank."""
        unit = spec.options.get("unit", 1)
        assert isinstance(unit, int)
        return cls.of(Lora.init(LayerSpec(spec.shape, spec.rank, spec.alpha), generator), unit)

    def to_tensors(self) -> dict[str, Tensor]:
        return self.whole().to_tensors()

    def factors(self) -> Factors | None:
        return self.whole().factors()

    def truncated(self, ranks: int) -> Lora:
        return self.whole().truncated(ranks)

    def whole(self) -> Lora:
        """A LoRA of all ranks, with copies of the factors."""
        with torch.no_grad():
            return Lora(torch.cat(list(self.ups), dim=1), torch.cat(list(self.downs)), self.alpha)

    def _now(self, parts: nn.ParameterList, axis: int) -> Tensor:
        if self.chosen is None or not torch.is_grad_enabled():
            return torch.cat(list(parts), dim=axis)
        before = [part.detach() for part in list(parts)[: self.chosen]]
        return torch.cat([*before, parts[self.chosen]], dim=axis)
