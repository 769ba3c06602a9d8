"""Where OpenCLIP's text tower (SD2's encoder, SDXL's second) keeps each layer of the canonical CLIP text encoder.

OpenCLIP fuses query, key and value of a block into one `in_proj_weight` of three times the width, in that order, keeps
the projection as a parameter of the whole model that is multiplied from the right, and has no module round the
positional embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_LAYER = "text_model.encoder.layers"
# canonical -> OpenCLIP, inside a block
BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "layer_norm2": "ln_2",
}
FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")  # in the order of the rows of in_proj
TOKENS, POSITIONS = "text_model.embeddings.token_embedding", "text_model.embeddings.position_embedding"
FINAL_NORM, PROJECTION = "text_model.final_layer_norm", "text_projection"


@dataclass(frozen=True)
class OpenClipPlace:
    """Where a layer's weight and bias are in an OpenCLIP model: parameters of `module`, a path in that model.

    An empty `module` is the model itself. `rows` are the (first, end) rows of a fused parameter that are the layer's;
    they hold for weight and bias. A `transposed` weight is stored as (in, out). `bias` is None if the layer has none.
    """

    module: str
    weight: str = "weight"
    bias: str | None = "bias"
    rows: tuple[int, int] | None = None
    transposed: bool = False


def openclip_places(depth: int, width: int) -> dict[str, OpenClipPlace]:
    """`{canonical path: place}` for a text tower of `depth` blocks and `width` channels.

    SD2's ViT-H has 24 x 1024 (transformers' copy leaves the last block out: 23), SDXL's ViT-bigG 32 x 1280.
    """
    return dict(_places(depth, width))


def _places(depth: int, width: int) -> Iterator[tuple[str, OpenClipPlace]]:
    yield TOKENS, OpenClipPlace("token_embedding", bias=None)
    yield POSITIONS, OpenClipPlace("", "positional_embedding", None)
    for i in range(depth):
        block = f"transformer.resblocks.{i}"
        for third, name in enumerate(FUSED):
            rows = (third * width, (third + 1) * width)
            yield f"{_LAYER}.{i}.{name}", OpenClipPlace(f"{block}.attn", "in_proj_weight", "in_proj_bias", rows)
        for ours, theirs in BLOCK.items():
            yield f"{_LAYER}.{i}.{ours}", OpenClipPlace(f"{block}.{theirs}")
    yield FINAL_NORM, OpenClipPlace("ln_final")
    yield PROJECTION, OpenClipPlace("", "text_projection", None, transposed=True)
