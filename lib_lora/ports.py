"""Protocols: what the engine and the runtime need of a model and of a host; and where a model keeps a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lib_lora.keys.layer_key import LayerKey


@dataclass(frozen=True)
class Slot:
    """Where a model keeps the weight and bias of one layer: parameters of `module`, by name.

    Of a fused attention projection only `rows` belong to the layer. A `transposed` weight is stored as (in, out).
    `bias` is None where the layer cannot have one; it may also name a parameter that is None for now.
    """

    module: nn.Module
    weight: str = "weight"
    bias: str | None = "bias"
    rows: slice | None = None
    transposed: bool = False


class Patchable(Protocol):
    """What applying needs of a model."""

    version: str  # "sd1", "sd2", "sdxl"

    def slots(self) -> Mapping[LayerKey, Slot]:
        """Every layer that a network can name, by canonical key."""

    def base_identity(self) -> str:
        """A string that changes whenever other base weights are loaded."""


@runtime_checkable
class DiffusionModel(Protocol):
    """A loaded latent-diffusion model, whatever classes it is made of: all that training and sampling need."""

    name: str
    version: str  # "sd1", "sd2", "sdxl"
    prediction_type: str  # "epsilon" or "v_prediction"

    def modules_by_key(self) -> Mapping[LayerKey, nn.Module]:
        """Every Linear, Conv2d and norm that a network can name, by canonical key."""

    def slots(self) -> Mapping[LayerKey, Slot]:
        """See `Patchable`."""

    def roots(self) -> Mapping[str, nn.Module]:
        """The root module of each part: {"unet": ..., "te1": ...}."""

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Text states (batch, tokens, width); differentiable if the text encoder's layers are."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Latents for pixels (batch, 3, H, W) in [-1, 1]: (batch, 8, H/8, W/8) = mean and std, scaled."""

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels (batch, 3, H, W) in [-1, 1] for scaled latents (batch, 4, h, w)."""

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The UNet's output (batch, 4, h, w) for noisy latents at integer timesteps (batch,)."""

    def alphas_cumprod(self) -> Tensor:
        """The noise schedule, (1000,) float64 or float32, index = timestep."""

    def base_identity(self) -> str:
        """A string that changes whenever other base weights are loaded."""


class Host(Protocol):
    """What surrounds the engine: the webui, or the standalone program."""

    def model(self) -> DiffusionModel:
        """The currently loaded model."""

    def network_folders(self) -> Sequence[Any]:
        """Folders searched for network files, the one new files go to first."""

    def notify(self, message: str) -> None:
        """Show a message to the user where they look."""

    def exclusive(self, job: Callable[[], Any]) -> Any:
        """Run `job` while nothing else uses the model, with every flag and weight restored afterwards."""
