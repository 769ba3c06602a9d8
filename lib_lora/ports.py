"""Protocols: what the engine and the runtime need of a model and of a host; and where a model keeps a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

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


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told beside the noisy latents; each tensor's first axis is the batch.

    `states` (batch, tokens, width) are the text states. SDXL also has `pooled` (batch, width of the second text
    encoder) and `time_ids` (batch, 6): height and width of the original, top and left of the crop, height and width
    of the picture, all in pixels; None stands for a picture of the latents' own size.
    """

    states: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """Every tensor changed, e.g. moved or indexed."""
        pooled, time_ids = (None if t is None else change(t) for t in (self.pooled, self.time_ids))
        return Conditioning(change(self.states), pooled, time_ids)

    @staticmethod
    def join(items: Sequence[Conditioning], how: Callable[[Sequence[Tensor]], Tensor]) -> Conditioning:
        """Tensors of several brought together by `how`: torch.cat for batches, torch.stack for single ones."""
        extra = ([item.pooled for item in items], [item.time_ids for item in items])
        pooled, time_ids = (how(given) if len(given := [t for t in own if t is not None]) else None for own in extra)
        return Conditioning(how([item.states for item in items]), pooled, time_ids)


@dataclass(frozen=True)
class TextOptions:
    """How prompts become text states.

    `clip_skip` counts as users do (1 is the last layer), 0 is the model's own choice. `windows` of 75 tokens each are
    read, what is longer is cut. With `weights`, `(word:1.2)`, `(word)` and `[word]` are emphasis as in the webui.
    """

    clip_skip: int = 0
    windows: int = 1
    weights: bool = False


PLAIN_TEXT = TextOptions()


class Patchable(Protocol):
    """What applying needs of a model."""

    version: str  # "sd1", "sd2", "sdxl"

    def slots(self) -> Mapping[LayerKey, Slot]:
        """Every layer that a network can name, by canonical key."""

    def base_identity(self) -> str:
        """A string that changes whenever other base weights are loaded."""


@runtime_checkable
class DiffusionModel(Patchable, Protocol):
    """A loaded latent-diffusion model, whatever classes it is made of: all that training and sampling need."""

    name: str
    prediction_type: str  # "epsilon" or "v_prediction"
    source: Path | None  # the checkpoint's file, or the folder in diffusers' layout; None where it is not known

    def modules_by_key(self) -> Mapping[LayerKey, nn.Module]:
        """Every Linear, Conv2d and norm that a network can name and that is a module of its own, by canonical key."""

    def roots(self) -> Mapping[str, nn.Module]:
        """The root module of each part: {"unet": ..., "te1": ..., "te2": ...}."""

    def encode_text(self, prompts: Sequence[str], options: TextOptions = PLAIN_TEXT) -> Conditioning:
        """Text states, (batch, 77 * windows, width); differentiable if the text encoder's layers are."""

    def token_vectors(self, text: str) -> Mapping[str, Tensor]:
        """Each text encoder's input embeddings of the words of `text`: {"te1": (tokens, width), ...}, copies."""

    def extra_tokens(self, vectors: Mapping[str, Mapping[str, Tensor]]) -> AbstractContextManager[None]:
        """While open, every occurrence of a word of `vectors` in a prompt is read as its vectors, differentiably.

        {"<cat>": {"te1": (n, width), "te2": (n, width)}}: n tokens in place of the word.
        """

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Latents for pixels (batch, 3, H, W) in [-1, 1]: (batch, 8, H/8, W/8) = mean and std, scaled."""

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels (batch, 3, H, W) in [-1, 1] for scaled latents (batch, 4, h, w)."""

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Conditioning) -> Tensor:
        """The UNet's output (batch, 4, h, w) for noisy latents at integer timesteps (batch,)."""

    def alphas_cumprod(self) -> Tensor:
        """The noise schedule, (1000,) float64 or float32, index = timestep."""


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
