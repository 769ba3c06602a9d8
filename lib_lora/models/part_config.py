"""The arguments of diffusers' and transformers' classes for networks of which only the tensors' shapes are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_lora.errors import BadFile
from lib_lora.keys import versions
from lib_lora.keys.layer_key import TE1, TE2
from lib_lora.keys.open_clip import PROJECTION
from lib_lora.models.checkpoint_config import SCALE_FACTORS, TEXT_CONFIG_KEYS, ModelConfig
from lib_lora.models.tokenizer import SD1_TEXT_CONFIG

Shapes = Mapping[str, tuple[int, ...]]  # of a part, by diffusers' or transformers' names
_LAYER = "text_model.encoder.layers."
_SD1_HEADS, _HEAD_CHANNELS, _SIZE_IDS = 8, 64, 6
_LAST_RUN = 23  # blocks of SD2's encoder that are run; the file's 24th is not


def _count(shapes: Shapes, prefix: str, depth: int) -> int:
    """How many numbered children `prefix` has, e.g. down_blocks.0, down_blocks.1, ... -> 4."""
    return len({name.split(".")[depth] for name in shapes if name.startswith(prefix)})


def _need(shapes: Shapes, name: str) -> tuple[int, ...]:
    if not shapes.get(name):
        raise BadFile(f"the checkpoint lacks the tensor {name!r} (diffusers' name); download it again")
    return shapes[name]


def unet_config(shapes: Shapes, version: str, settings: ModelConfig) -> dict[str, Any]:
    """`UNet2DConditionModel`'s arguments."""
    levels = _count(shapes, "down_blocks.", 1)
    depths = [_count(shapes, f"down_blocks.{i}.attentions.0.transformer_blocks.", 5) for i in range(levels)]
    widths = tuple(_need(shapes, f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels))
    config: dict[str, Any] = {
        "sample_size": 128 if version == versions.SDXL else 64,
        "in_channels": _need(shapes, "conv_in.weight")[1],
        "out_channels": _need(shapes, "conv_out.weight")[0],
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)),
        "block_out_channels": widths,
        "layers_per_block": _count(shapes, "down_blocks.0.resnets.", 3),
        "cross_attention_dim": _need(shapes, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")[-1],
        "attention_head_dim": _heads(widths, version, settings),  # diffusers' name for the number of heads
        "use_linear_projection": len(_need(shapes, "mid_block.attentions.0.proj_in.weight")) == 2,
    }
    if version == versions.SDXL:
        config.update(
            transformer_layers_per_block=tuple(max(depth, 1) for depth in depths),
            addition_embed_type="text_time",
            projection_class_embeddings_input_dim=_need(shapes, "add_embedding.linear_1.weight")[1],
        )
    return config


def sizes_width(sizes: int, pooled: int) -> int:
    """The channels of each of SDXL's six size numbers, of `sizes` in all beside the `pooled` ones. Raises BadFile."""
    width, rest = divmod(sizes - pooled, _SIZE_IDS)
    if rest or width < 1:
        raise BadFile(f"{sizes} channels of SDXL's sizes are not {pooled} and six equal parts; get a whole checkpoint")
    return width


def _heads(widths: tuple[int, ...], version: str, settings: ModelConfig) -> int | tuple[int, ...]:
    """The number of heads, in all levels or of each: SD1 has 8 everywhere, the others heads of 64 channels."""
    if settings.head_channels is None and (settings.heads is not None or version == versions.SD1):
        heads = settings.heads or _SD1_HEADS
        wrong = [width for width in widths if width % heads]
        many: int | tuple[int, ...] = heads
        what, name = f"{heads} heads", "num_heads"
    else:
        channels = settings.head_channels or _HEAD_CHANNELS
        wrong = [width for width in widths if width % channels]
        many = tuple(width // channels for width in widths)
        what, name = f"{channels} channels a head", "num_head_channels"
    if wrong:
        raise BadFile(f"the UNet's width {wrong[0]} is not a multiple of {what}; put the right {name} into the .yaml")
    return many


def vae_config(shapes: Shapes, version: str, settings: ModelConfig) -> dict[str, Any]:
    """`AutoencoderKL`'s arguments."""
    levels = _count(shapes, "encoder.down_blocks.", 2)
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": _need(shapes, "post_quant_conv.weight")[0],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(
            _need(shapes, f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels)
        ),
        "layers_per_block": _count(shapes, "encoder.down_blocks.0.resnets.", 4),
        "scaling_factor": settings.scale_factor or SCALE_FACTORS[version],
    }


def text_config(part: str, shapes: Shapes, version: str, settings: ModelConfig) -> dict[str, Any]:
    """`CLIPTextConfig`'s arguments: sizes from the shapes; heads from the folder, from metadata, or width / 64."""
    words = _need(shapes, "text_model.embeddings.token_embedding.weight")
    hidden = words[-1]
    config = {
        **SD1_TEXT_CONFIG,
        "num_attention_heads": max(hidden // _HEAD_CHANNELS, 1),
        "projection_dim": shapes.get(f"{PROJECTION}.weight", (hidden,))[0],
        "hidden_act": "quick_gelu" if part == TE1 and version != versions.SD2 else "gelu",  # OpenCLIP's towers
    }
    config.update(_given(part, hidden, version, settings))
    config.update(
        vocab_size=words[0],
        hidden_size=hidden,
        intermediate_size=_need(shapes, f"{_LAYER}0.mlp.fc1.weight")[0],
        num_hidden_layers=blocks_run(_count(shapes, _LAYER, 3), part, version),
        max_position_embeddings=_need(shapes, "text_model.embeddings.position_embedding.weight")[0],
    )
    heads = config["num_attention_heads"]
    if type(heads) is not int or heads < 1 or hidden % heads:
        raise BadFile(
            f"{heads!r} attention heads do not divide the text encoder's width {hidden}; mend its config.json"
        )
    return config


def blocks_run(blocks: int, part: str, version: str) -> int:
    """How many of a tower's blocks are run: of SD2's the last is not, unless the file left it out already."""
    return blocks - 1 if version == versions.SD2 and part == TE1 and blocks not in (1, _LAST_RUN) else blocks


def _given(part: str, hidden: int, version: str, settings: ModelConfig) -> dict[str, Any]:
    """What a CLIP folder named by the .yaml, or else the checkpoint's metadata, says of a text encoder."""
    folder = settings.clip_folder if part != TE2 and version != versions.SD2 else None
    if folder is not None:
        path = folder / "config.json"
        config = _known(path.read_text(encoding="utf-8"), str(path))
        if config.get("hidden_size", hidden) != hidden:
            raise BadFile(
                f"{path} says hidden_size {config['hidden_size']}, the checkpoint's text encoder is {hidden} wide; "
                "name the right folder in the .yaml"
            )
        return config
    said = settings.text_configs.get(part)
    return {} if said is None else _known(said, f"the checkpoint's metadata {TEXT_CONFIG_KEYS[part]}")


def clip_folder_fits(folder: Path | None) -> bool:
    """Whether a tokenizer can be read from it."""
    return folder is not None and (folder / "vocab.json").is_file()


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
