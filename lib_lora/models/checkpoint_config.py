"""What a checkpoint's tensors do not tell: its settings, from the .yaml beside it and from its metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib_lora.errors import BadFile
from lib_lora.keys import versions
from lib_lora.keys.layer_key import TE1, TE2

# In a checkpoint's metadata: the JSON of a CLIPTextConfig's fields, for models whose heads are not 64 channels wide.
TEXT_CONFIG_KEY = "lorakit.text_config"
TEXT_CONFIG_KEYS = {TE1: TEXT_CONFIG_KEY, TE2: f"{TEXT_CONFIG_KEY}_2"}
EPSILON, V = "epsilon", "v_prediction"
SCALE_FACTORS = {versions.SD1: 0.18215, versions.SD2: 0.18215, versions.SDXL: 0.13025}
# Tensors of no use but their names, which checkpoints are marked with.
V_MARK, ZERO_TERMINAL_MARK = "v_pred", "ztsnr"
_SPOKEN = {"epsilon": EPSILON, "eps": EPSILON, "v": V, "v_prediction": V, "v-prediction": V, "vpred": V}
_SAID_IN = ("modelspec.prediction_type", "modelspec.predict_key")
_ARCHITECTURE = "modelspec.architecture"
_ARCHITECTURES = {"stable-diffusion-v2-512": EPSILON, "stable-diffusion-v2-768-v": V}


@dataclass(frozen=True)
class ModelConfig:
    """What the tensors alone do not tell.

    `heads` is the UNet's number of heads, `head_channels` the channels of each; one of them is given, or neither where
    it is as in every published model of the version. `prediction_type` is None where nothing tells it.
    `clip_folder` is None where the default vocabulary is to be used.
    """

    heads: int | None = None
    head_channels: int | None = None
    prediction_type: str | None = None
    zero_terminal: bool = False
    scale_factor: float | None = None
    linear_start: float = 0.00085
    linear_end: float = 0.012
    clip_folder: Path | None = None
    text_configs: Mapping[str, str] = field(default_factory=dict)


def _get(tree: Any, *path: str) -> Any:
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            return None
        tree = tree[name]
    return tree


def read_yaml(checkpoint: Path) -> dict[str, Any]:
    """The fields of `ModelConfig` that the .yaml of the same name beside `checkpoint` gives; {} where there is none.

    Raises BadFile if it is not YAML or a value is not a number.
    """
    path = checkpoint.with_suffix(".yaml")
    if not path.is_file():
        return {}
    import yaml

    try:
        params = _get(yaml.safe_load(path.read_text(encoding="utf-8")), "model", "params") or {}
        unet = _get(params, "unet_config", "params") or _get(params, "network_config", "params")
        version = _clip(params)
        folder = path.parent / str(version) if version else None
        found = {
            "heads": _positive(_get(unet, "num_heads"), int),
            "head_channels": _positive(_get(unet, "num_head_channels"), int),
            "prediction_type": _predicted(params),
            "scale_factor": _positive(_get(params, "scale_factor"), float),
            "linear_start": _positive(_get(params, "linear_start"), float),
            "linear_end": _positive(_get(params, "linear_end"), float),
            "clip_folder": folder if folder and (folder / "config.json").is_file() else None,
        }
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise BadFile(f"{path} cannot be read as a model's settings ({error}); mend it or remove it") from error
    return {name: value for name, value in found.items() if value is not None}


def _positive(value: Any, kind: type[int] | type[float]) -> int | float | None:
    number = kind(value) if value is not None else 0
    return number if number > 0 else None


def _clip(params: Any) -> Any:
    """The folder of the first text encoder, ldm's or sgm's."""
    models = _get(params, "conditioner_config", "params", "emb_models")
    first = models[0] if isinstance(models, list) and models else _get(params, "cond_stage_config")
    return _get(first, "params", "version")


def _predicted(params: Any) -> str | None:
    """ldm says it by name, sgm by the class that scales the UNet's output."""
    said = _get(params, "parameterization")
    if said is None:
        said = _get(params, "denoiser_config", "params", "scaling_config", "target")
        said = {"EpsScaling": "eps", "VScaling": "v"}.get(str(said).rpartition(".")[2]) if said else None
    if said is None:
        # ldm's own default, where the file is a whole model's settings and no fragment.
        return EPSILON if _get(params, "unet_config", "params", "context_dim") else None
    return _SPOKEN.get(str(said))


def stated(metadata: Mapping[str, str], names: Iterable[str]) -> dict[str, Any]:
    """The fields of `ModelConfig` that a file's metadata and the marks among its tensors' `names` give."""
    found: dict[str, Any] = {"text_configs": {p: metadata[k] for p, k in TEXT_CONFIG_KEYS.items() if k in metadata}}
    marks = {V_MARK, ZERO_TERMINAL_MARK} & set(names)
    said = [_SPOKEN[metadata[key].lower()] for key in _SAID_IN if metadata.get(key, "").lower() in _SPOKEN]
    architecture = metadata.get(_ARCHITECTURE, "").lower()
    if V_MARK in marks:
        found["prediction_type"] = V
    elif said:
        found["prediction_type"] = said[0]
    elif architecture in _ARCHITECTURES:
        found["prediction_type"] = _ARCHITECTURES[architecture]
    if ZERO_TERMINAL_MARK in marks:
        found["zero_terminal"] = True
    return found


def settings_of(checkpoint: Path, metadata: Mapping[str, str], names: Iterable[str]) -> ModelConfig:
    """A checkpoint's settings: what its metadata and marks say, and above that what its .yaml says."""
    return ModelConfig(**{**stated(metadata, names), **read_yaml(checkpoint)})
