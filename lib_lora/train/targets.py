"""Which layers of a model a job trains.

What is usual for a type is what its peers do: LoRA trains what kohya trains by default (192 layers of SD1's UNet, 722
of SDXL's; 72, 138, and 72 + 192 of the text encoders), LoCon, LoHa and LoKr the blocks of convolutions too, and IA3
the layers of LyCORIS' preset of that name. Norms are those of the blocks, as LyCORIS has them: the webui's built-in
Lora does not find the last norm of SD1's and SD2's UNet, nor of their text encoders, by its name in files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.keys.layer_key import PARTS, TE1, TE2, UNET, LayerKey
from lib_lora.keys.text_encoder import LAYERS
from lib_lora.patch.targets import Piece
from lib_lora.ports import Patchable, Slot
from lib_lora.train.sections import NetworkSection

TRANSFORMERS = ".attentions."
CONVOLUTIONS = (".resnets.", ".downsamplers.", ".upsamplers.")
# Areas of the UNet. Text encoders have no cross-attention: where they are trained, it is always attention and MLP.
AREAS: Mapping[str, Callable[[str], bool]] = {
    "attention": lambda path: TRANSFORMERS in path,
    "cross_attention": lambda path: ".attn2." in path,
    "cross_attention_kv": lambda path: path.endswith((".attn2.to_k", ".attn2.to_v")),
    "attention_conv": lambda path: TRANSFORMERS in path or any(mark in path for mark in CONVOLUTIONS),
    "all": lambda path: True,
}
AUTO = {"locon": "attention_conv", "loha": "attention_conv", "lokr": "attention_conv", "norm": "attention_conv"}
IA3_ROWS = (".to_k", ".to_v", ".self_attn.k_proj", ".self_attn.v_proj")
IA3_COLUMNS = (".ff.net.2", ".mlp.fc2")  # which LyCORIS' preset scales at their inputs
SWITCHES = {UNET: "train_unet", TE1: "train_text_encoder", TE2: "train_text_encoder_2"}
_TEXT = (".self_attn.", ".mlp.")
_BLOCK = re.compile(r"\.layers\.(\d+)\.")
MATRIX, NORM, EMBEDDING = "matrix", "norm", "embedding"


def target_keys(model: Patchable, network: NetworkSection) -> list[LayerKey]:
    """The layers a job trains, sorted. Raises BadConfig if a chosen part has none, or a pattern is no pattern."""
    include, exclude = patterns("include", network.include), patterns("exclude", network.exclude)
    wanted: list[LayerKey] = []
    for part in PARTS:
        if not getattr(network, SWITCHES[part]):
            continue
        own = {
            key: kind for key, slot in model.slots().items() if key.part == part and (kind := kind_of(model, key, slot))
        }
        keys = [key for key, kind in own.items() if _usual(model, key, kind, network) or _any(include, key)]
        keys = [key for key in keys if not _any(exclude, key)]
        if not keys:
            why = "the patterns leave none of them" if own else "the model has no layer of that part"
            name = getattr(model, "name", model.version)
            raise BadConfig(
                f"network.{SWITCHES[part]} = True, but nothing of model {name!r} would be trained there: {why}; "
                "switch it off, or change targets, include and exclude"
            )
        wanted += keys
    return sorted(wanted)


def weight_of(slot: Slot) -> Tensor:
    """The layer's weight as it is now, a view: of a fused one its rows, of a transposed one (out, in)."""
    return Piece.of(slot).view(getattr(slot.module, slot.weight).detach())


def kind_of(model: Patchable, key: LayerKey, slot: Slot) -> str:
    """ "matrix" for linear layers and convolutions, "norm", "embedding", or "" for what cannot be trained."""
    weight = getattr(slot.module, slot.weight, None)
    if not isinstance(weight, Tensor) or not read_by_forward(slot):
        return ""
    depth = LAYERS.get(model.version, {}).get(key.part)
    block = _BLOCK.search(key.path)
    if depth is not None and block is not None and int(block[1]) >= depth:
        return ""  # SD2's text encoder has one more, which nothing ever runs
    if isinstance(slot.module, nn.Embedding) or key.path.endswith("_embedding"):
        return EMBEDDING
    return {1: NORM, 2: MATRIX, 4: MATRIX}.get(weight.dim(), "")


def read_by_forward(slot: Slot) -> bool:
    """Whether the module's own forward pass reads the weight; OpenCLIP's bare parameters are read from outside."""
    return slot.weight in ("weight", "in_proj_weight") and not slot.transposed


def patterns(name: str, texts: Iterable[str]) -> list[re.Pattern[str]]:
    """The compiled patterns of setting `network.name`. Raises BadConfig."""
    return [pattern(f"network.{name}", text) for text in texts]


def pattern(setting: str, text: str) -> re.Pattern[str]:
    """One compiled pattern. Raises BadConfig naming the setting."""
    try:
        return re.compile(text)
    except re.error as error:
        raise BadConfig(f"{setting}: {text!r} is no regular expression ({error}); write a dot as \\.") from None


def is_ia3_column(key: LayerKey) -> bool:
    """Whether IA3 scales this layer's inputs, not its outputs."""
    return key.path.endswith(IA3_COLUMNS)


def _any(found: Iterable[re.Pattern[str]], key: LayerKey) -> bool:
    return any(one.search(str(key)) for one in found)


def _usual(model: Patchable, key: LayerKey, kind: str, network: NetworkSection) -> bool:
    if kind == EMBEDDING:
        return False
    if kind == NORM and network.type != "norm" and not network.train_norms:
        return False
    if kind == MATRIX and network.type == "norm":
        return False
    if model.version not in LAYERS:
        return True  # a model we know nothing of: its own slots are the choice
    if kind == MATRIX and network.type == "ia3" and network.targets == "auto":
        return key.path.endswith(IA3_ROWS + IA3_COLUMNS)
    if key.part != UNET:
        inner = ".layers." in key.path or network.targets == "all"
        return inner if kind == NORM else any(mark in key.path for mark in _TEXT)
    area = AUTO.get(network.type, "attention") if network.targets == "auto" else network.targets
    return AREAS[area](key.path)
