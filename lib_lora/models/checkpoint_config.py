"""What a checkpoint's sizes are: read from its tensors' shapes and from the .yaml beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lib_lora.errors import BadFile, UnknownFormat, WrongBaseModel
from lib_lora.models.tokenizer import SD1_TEXT_CONFIG

TEXT_CONFIG_KEY = "lorakit.text_config"  # in a checkpoint's metadata: the JSON of a CLIPTextConfig's fields
_UNET, _TEXT = "model.diffusion_model.", "cond_stage_model."
_LAYER = "text_model.encoder.layers."


@dataclass(frozen=True)
class ModelConfig:
    """What the tensors alone do not tell. `clip_folder` is None where the default vocabulary is to be used."""

    unet_heads: int = 8
    prediction_type: str = "epsilon"
    scale_factor: float = 0.18215
    linear_start: float = 0.00085
    linear_end: float = 0.012
    clip_folder: Path | None = None


def _get(tree: Any, *path: str) -> Any:
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            return None
        tree = tree[name]
    return tree


def read_yaml(checkpoint: Path) -> ModelConfig:
    """The settings of the .yaml of the same name beside `checkpoint`; SD1's where there is none.

    Raises BadFile if it is not YAML or a value is not a number.
    """
    path = checkpoint.with_suffix(".yaml")
    if not path.is_file():
        return ModelConfig()
    import yaml

    try:
        params = _get(yaml.safe_load(path.read_text(encoding="utf-8")), "model", "params") or {}
        heads = _get(params, "unet_config", "params", "num_heads")
        version = _get(params, "cond_stage_config", "params", "version")
        folder = path.parent / str(version) if version else None
        return ModelConfig(
            unet_heads=int(heads) if heads and int(heads) > 0 else 8,
            prediction_type="v_prediction" if _get(params, "parameterization") == "v" else "epsilon",
            scale_factor=float(_get(params, "scale_factor") or ModelConfig.scale_factor),
            linear_start=float(_get(params, "linear_start") or ModelConfig.linear_start),
            linear_end=float(_get(params, "linear_end") or ModelConfig.linear_end),
            clip_folder=folder if folder and (folder / "config.json").is_file() else None,
        )
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise BadFile(f"{path} cannot be read as a model's settings ({error}); mend it or remove it") from error


def require_sd1(state: Mapping[str, Tensor], path: Path) -> None:
    """Raises WrongBaseModel for SD2, SDXL and models of another input, UnknownFormat for what is no checkpoint."""
    kind = None
    if any(name.startswith("conditioner.embedders.") for name in state) or f"{_UNET}label_emb.0.0.weight" in state:
        kind = "an SDXL checkpoint"
    elif any(name.startswith(f"{_TEXT}model.") for name in state):
        kind = "a Stable Diffusion 2 checkpoint"
    elif any(name.startswith(("model.diffusion_model.joint_blocks.", "double_blocks.")) for name in state):
        kind = "a transformer model (SD3 or Flux)"
    entry = state.get(f"{_UNET}input_blocks.0.0.weight")
    if entry is not None and entry.dim() != 4:
        entry = None
    if kind is None and entry is not None and entry.shape[1] != 4:
        kind = f"a checkpoint whose UNet takes {entry.shape[1]} channels (inpainting or editing)"
    if kind is not None:
        raise WrongBaseModel(f"{path.name} is {kind}; give a Stable Diffusion 1.x checkpoint")
    if entry is None:
        raise UnknownFormat(
            f"{path.name} has no convolution {_UNET}input_blocks.0.0.weight, so it is no whole CompVis checkpoint; "
            "give a Stable Diffusion 1.x checkpoint (not a network, a VAE or a diffusers part)"
        )


def _count(state: Mapping[str, Tensor], prefix: str, depth: int) -> int:
    """How many numbered children `prefix` has, e.g. down_blocks.0, down_blocks.1, ... -> 4."""
    return len({name.split(".")[depth] for name in state if name.startswith(prefix)})


def _need(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise BadFile(f"the checkpoint lacks the tensor {name!r} (diffusers' name); download it again")
    return state[name]


def unet_config(state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
    """`UNet2DConditionModel`'s arguments for a UNet's diffusers-named tensors."""
    levels = _count(state, "down_blocks.", 1)
    cross = [f"down_blocks.{i}.attentions.0.norm.weight" in state for i in range(levels)]
    widths = tuple(_need(state, f"down_blocks.{i}.resnets.0.conv1.weight").shape[0] for i in range(levels))
    context = _need(state, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight").shape[1]
    for width in widths:
        if width % heads:
            raise BadFile(
                f"the UNet's width {width} is not a multiple of {heads} heads; put the right num_heads into the .yaml"
            )
    return {
        "sample_size": 64,
        "in_channels": _need(state, "conv_in.weight").shape[1],
        "out_channels": _need(state, "conv_out.weight").shape[0],
        "down_block_types": tuple("CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross),
        "up_block_types": tuple("CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)),
        "block_out_channels": widths,
        "layers_per_block": _count(state, "down_blocks.0.resnets.", 3),
        "cross_attention_dim": context,
        "attention_head_dim": heads,  # diffusers' name for the number of heads in SD1
        "use_linear_projection": _need(state, "mid_block.attentions.0.proj_in.weight").dim() == 2,
    }


def vae_config(state: Mapping[str, Tensor], scale_factor: float) -> dict[str, Any]:
    """`AutoencoderKL`'s arguments for a VAE's diffusers-named tensors."""
    levels = _count(state, "encoder.down_blocks.", 2)
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": _need(state, "post_quant_conv.weight").shape[0],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(
            _need(state, f"encoder.down_blocks.{i}.resnets.0.conv1.weight").shape[0] for i in range(levels)
        ),
        "layers_per_block": _count(state, "encoder.down_blocks.0.resnets.", 4),
        "scaling_factor": scale_factor,
    }


def text_config(state: Mapping[str, Tensor], folder: Path | None, stated: str | None) -> dict[str, Any]:
    """`CLIPTextConfig`'s arguments: shapes from the tensors, heads from the folder, `stated` JSON or width / 64."""
    words = _need(state, "text_model.embeddings.token_embedding.weight")
    hidden = words.shape[1]
    config = {
        **SD1_TEXT_CONFIG,
        "num_attention_heads": max(hidden // 64, 1),
        "projection_dim": hidden,
    }
    if folder is not None:
        config.update(_known((folder / "config.json").read_text(encoding="utf-8"), str(folder / "config.json")))
    elif stated is not None:
        config.update(_known(stated, f"the checkpoint's metadata {TEXT_CONFIG_KEY}"))
    if folder is not None and config["hidden_size"] != hidden:
        raise BadFile(
            f"{folder / 'config.json'} says hidden_size {config['hidden_size']}, the checkpoint's text encoder is "
            f"{hidden} wide; name the right folder in the .yaml"
        )
    config.update(
        vocab_size=words.shape[0],
        hidden_size=hidden,
        intermediate_size=_need(state, f"{_LAYER}0.mlp.fc1.weight").shape[0],
        num_hidden_layers=_count(state, _LAYER, 3),
        max_position_embeddings=_need(state, "text_model.embeddings.position_embedding.weight").shape[0],
    )
    heads = config["num_attention_heads"]
    if type(heads) is not int or heads < 1 or hidden % heads:
        raise BadFile(
            f"{heads!r} attention heads do not divide the text encoder's width {hidden}; mend its config.json"
        )
    return config


def _known(text: str, where: str) -> dict[str, Any]:
    """The sizes of a text encoder in a CLIP config.json (of the text model, or of a whole CLIP). Raises BadFile."""
    try:
        config = json.loads(text)
    except ValueError as error:
        raise BadFile(f"{where} is not the JSON of a text encoder ({error}); mend it or remove it") from error
    inner = config.get("text_config", config) if isinstance(config, Mapping) else None
    if not isinstance(inner, Mapping):
        raise BadFile(f"{where} is not the JSON object of a text encoder; mend it or remove it")
    return {name: inner[name] for name in SD1_TEXT_CONFIG if name in inner}
