"""What a network looks like in each dialect it can be converted to, and which layers have no place there."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lib_lora.files.codec import embedding_tensors, kohya_tensors
from lib_lora.keys import cloneofsimo, naming
from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.networks.base import Layer
from lib_lora.networks.network import Network
from lib_lora.tools.plain_lora import PlainLora, plain_lora

# Tensors that no other reader of kohya's naming knows.
_PEFTS = {"oft_R", "oft_r", "oft_s", "boft_R", "boft_s", "set_bias"}
# Factors in which a layer's change is linear: a scalar can go into one of them.
_LINEAR = ("lora_up.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a", "diff")
_WALKED = {UNET: ["CrossAttention", "Attention", "GEGLU"], "text_encoder": ["CLIPAttention"]}
Tensors = dict[str, Tensor]


@dataclass
class Draft:
    """Files to write, by path relative to the output; `""` is the output itself.

    `texts` are files of text. `refused` says why a layer is in none of them, `embeddings` which tokens are left out.
    """

    files: dict[str, Tensors] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    refused: dict[LayerKey, str] = field(default_factory=dict)
    embeddings: tuple[str, ...] = ()


def kohya(network: Network, version: str) -> Draft:
    """kohya's naming, in which ComfyUI, the webui and LyCORIS have names for nearly everything."""
    draft = Draft()
    layers = {key: _for_kohya(key, layer) for key, layer in network.layers.items()}
    draft.refused = {key: given for key, given in layers.items() if isinstance(given, str)}
    tensors = {key: given for key, given in layers.items() if not isinstance(given, str)}
    draft.files[""] = kohya_tensors(tensors, version) | embedding_tensors(network)
    return draft


def diffusers(network: Network, version: str) -> Draft:
    """What `load_lora_weights` of diffusers reads. It has no alpha, so that is folded into the factors.

    Without an alpha diffusers scales a layer by the ratio of another layer's rank to its own: all get the same rank.
    """
    draft, plain = plain_layers(network, version)
    draft.embeddings = tuple(network.embeddings)
    tensors = draft.files.setdefault("", {})
    _refuse_mixed_dora(draft, plain)
    for key, lora in plain.items():
        module, (up, down) = naming.diffusers_name(key), naming.diffusers_factors(key)
        widest = max(other.rank for k, other in plain.items() if k.part == key.part)
        tensors |= factors(lora.folded().padded(widest), module, up, down)
    draft.metadata["format"] = "pt"
    return draft


def numbered(network: Network, version: str) -> Draft:
    """cloneofsimo's safetensors: numbers instead of names, attention and GEGLU only, or with all of the resnets."""
    draft, plain = plain_layers(network, version)
    if version not in ("sd1", "sd2"):
        draft.refused = dict.fromkeys(network.layers, "cloneofsimo's files are for SD 1.x and SD 2.x")
        return draft
    extended = any(".resnets." in key.path for key in plain)
    numbers: dict[str, dict[int, LayerKey]] = {}
    for key, lora in plain.items():
        number = cloneofsimo.layer_number(key, extended)
        if lora.magnitude is not None or lora.bias is not None:
            draft.refused[key] = "cloneofsimo's files have no DoRA and no bias"
        elif number is None:
            draft.refused[key] = "it has no number there"
        else:
            numbers.setdefault(number[0], {})[number[1]] = key
    tensors = draft.files.setdefault("", {})
    for group, keys in numbers.items():
        whole = cloneofsimo.count(group, extended, version)
        if missing := whole - len(keys):
            why = f"cloneofsimo's readers want all {whole} layers of a {group}, and {missing} are not there"
            draft.refused |= dict.fromkeys(keys.values(), why)
            continue
        draft.metadata[group] = json.dumps(_WALKED[group] + (["ResnetBlock2D"] if extended and group == UNET else []))
        for i, key in keys.items():
            folded = plain[key].folded()
            tensors |= {f"{group}:{i}:up": folded.up, f"{group}:{i}:down": folded.down}
            draft.metadata[f"{group}:{i}:rank"] = str(folded.rank)
    _add_vectors(draft, network)
    return draft


def plain_layers(network: Network, version: str) -> tuple[Draft, dict[LayerKey, PlainLora]]:
    """The layers that are two factors, with as many axes as the base weight; the others are refused in the draft."""
    draft, plain = Draft(), {}
    for key, layer in network.layers.items():
        lora = plain_lora(layer)
        if isinstance(lora, str):
            draft.refused[key] = lora
        elif naming.is_embedding(key):
            draft.refused[key] = "there is no name for the factors of an embedding"
        else:
            plain[key] = lora.with_axes(naming.weight_axes(key, version))
    return draft, plain


def _refuse_mixed_dora(draft: Draft, plain: dict[LayerKey, PlainLora]) -> None:
    """diffusers makes all layers of a part DoRA's if one is, which changes the others; the fewer go."""
    for part in {key.part for key in plain}:
        with_norms = {key for key, lora in plain.items() if key.part == part and lora.magnitude is not None}
        without = {key for key in plain if key.part == part} - with_norms
        for key in min(with_norms, without, key=len):
            draft.refused[key] = "diffusers takes a part with DoRA on all of its layers or on none"
            del plain[key]


def factors(lora: PlainLora, module: str, up: str, down: str) -> Tensors:
    """The tensors of a layer where names are PEFT's; its scale is left to the caller."""
    tensors = {f"{module}.{up}": lora.up, f"{module}.{down}": lora.down}
    if lora.bias is not None:
        tensors[f"{module}.lora_B.bias"] = lora.bias
    if lora.magnitude is not None:
        conv = lora.down.ndim == 4
        tensors[f"{module}.lora_magnitude_vector"] = lora.magnitude.reshape((1, -1, 1, 1) if conv else (-1,))
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _for_kohya(key: LayerKey, layer: Layer) -> Tensors | str:
    """The layer's tensors in the vocabulary of kohya's naming, or the reason why it has none."""
    tensors = layer.to_tensors()
    if "ia3_l" in tensors:
        numbers = tensors.pop("ia3_l")
        if numbers.ndim != 2 or (numbers.shape[0] > 1 and naming.has_bias(key)):
            return "PEFT's IA3 scales the bias too (or does not say its axis), LyCORIS' does not"
        columns = torch.tensor(float(numbers.shape[0] == 1))
        return {**tensors, "weight": (numbers.double() - 1).to(torch.float32).flatten(), "on_input": columns}
    if own := sorted(_PEFTS & tensors.keys()):
        return f"kohya's naming has nothing for PEFT's {', '.join(own)}"
    if "scalar" in tensors:
        name = next((name for name in _LINEAR if name in tensors), None)
        if name is None:
            return f"the scalar of a {layer.kind!r} cannot go into a factor"
        tensors[name] = tensors[name].float() * tensors.pop("scalar").float()
    if "lora_up.bias" in tensors:
        lora = plain_lora(layer)
        if isinstance(lora, str) or lora.bias is None:
            return "the bias of its second factor cannot be separated from what is round it"
        tensors.pop("lora_up.bias")
        tensors["diff_b"] = lora.bias
    return tensors


def _add_vectors(draft: Draft, network: Network) -> None:
    """cloneofsimo has one vector for each token, for the one text encoder."""
    left = []
    for token, vectors in network.embeddings.items():
        vector = vectors.get("clip_l")
        if vector is None or len(vectors) > 1 or vector.shape[0] != 1:
            left.append(token)
            continue
        draft.files[""][token] = vector[0].clone()
        draft.metadata[token] = "<embed>"
    draft.embeddings = tuple(left)
