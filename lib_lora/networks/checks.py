"""What the types say when tensors contradict each other or the weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from torch import Tensor

from lib_lora.errors import ShapeMismatch
from lib_lora.networks.base import read_alpha


def described(tensors: Mapping[str, Tensor]) -> str:
    """Names and shapes, for a message: `hada_w1_a (8, 4), hada_w1_b (4, 9)`."""
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())


def refuse(kind: str, tensors: Mapping[str, Tensor], why: str) -> NoReturn:
    """Raise ShapeMismatch for tensors that contradict each other; `why` follows their shapes."""
    raise ShapeMismatch(f"{kind} layer with {described(tensors)}: {why}; the file is damaged, get it again")


def refuse_weight(kind: str, tensors: Mapping[str, Tensor], weight: Tensor) -> NoReturn:
    """Raise ShapeMismatch for tensors that do not fit the base weight."""
    raise ShapeMismatch(
        f"{kind} layer with {described(tensors)} does not fit a weight {tuple(weight.shape)}; "
        "the network is for another base model"
    )


def alpha_of(tensors: Mapping[str, Tensor]) -> float | None:
    """The number in `alpha`, None without one. Raises ShapeMismatch if it is more than one number."""
    return read_alpha(tensors, 0.0) if "alpha" in tensors else None


def factors_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that hold factors: all but `alpha`."""
    return {name: tensor for name, tensor in tensors.items() if name != "alpha"}
