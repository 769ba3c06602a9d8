"""Whole files' names as each tool writes them, made of a model's modules by that tool's own rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lib_lora.keys import unet

Shape = tuple[int, ...]
RANK = 4
ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
CLIP_ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
# (version, part) -> what each family of tools puts before a path
KOHYA = {("sdxl", "te1"): "lora_te1", ("sdxl", "te2"): "lora_te2", ("sd1", "te1"): "lora_te", ("sd2", "te1"): "lora_te"}
COMFY = {("sd1", "te1"): "clip_l", ("sd2", "te1"): "clip_h", ("sdxl", "te1"): "clip_l", ("sdxl", "te2"): "clip_g"}
DIFFUSERS = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
WEBUI = {
    ("sd1", "te1"): "transformer",
    ("sd2", "te1"): "model",
    ("sdxl", "te1"): "0_transformer",
    ("sdxl", "te2"): "1_model",
}
OPEN_CLIP = {"self_attn": "attn", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "layer_norm": "ln_"}


@dataclass(frozen=True)
class Target:
    """A layer and its weight's shape."""

    version: str
    part: str
    path: str
    shape: Shape

    @property
    def is_attention(self) -> bool:
        return self.path.endswith((*ATTENTION, *CLIP_ATTENTION))

    @property
    def native(self) -> str:
        """The path in ldm's or sgm's UNet; text encoders keep transformers' there."""
        return unet.NATIVE[self.version][self.path] if self.part == "unet" else self.path


def lora_shapes(shape: Shape) -> tuple[Shape, Shape]:
    """Of up and down, for a Linear's or convolution's weight."""
    out, width, *kernel = shape
    return (out, RANK, *(1,) * len(kernel)), (RANK, width, *kernel)


def _lora(
    module: str, target: Target, up: str = "lora_up.weight", down: str = "lora_down.weight"
) -> Iterator[tuple[str, Shape]]:
    if len(target.shape) == 1:
        yield f"{module}.w_norm", target.shape
        yield f"{module}.b_norm", target.shape
        return
    shapes = lora_shapes(target.shape)
    yield f"{module}.{up}", shapes[0]
    yield f"{module}.{down}", shapes[1]


def kohya(target: Target) -> Iterator[tuple[str, Shape]]:
    """sd-scripts: diffusers' names for SD1 and SD2, sgm's for SDXL."""
    path = target.native if target.version == "sdxl" else target.path
    prefix = "lora_unet" if target.part == "unet" else KOHYA[target.version, target.part]
    yield from _lora(f"{prefix}_{path}".replace(".", "_"), target)
    yield f"{prefix}_{path}".replace(".", "_") + ".alpha", ()


def kohya_diffusers_names(target: Target) -> Iterator[tuple[str, Shape]]:
    """SDXL under kohya's prefixes but diffusers' names: OneTrainer, diffusers' own conversion, and others."""
    prefix = "lora_unet" if target.part == "unet" else KOHYA[target.version, target.part]
    yield from _lora(f"{prefix}_{target.path}".replace(".", "_"), target)


def kohya_native_names(target: Target) -> Iterator[tuple[str, Shape]]:
    """SD1 and SD2 under kohya's prefixes but ldm's names, as some extractors write them."""
    prefix = "lora_unet" if target.part == "unet" else KOHYA[target.version, target.part]
    yield from _lora(f"{prefix}_{target.native}".replace(".", "_"), target)


def lycoris(target: Target) -> Iterator[tuple[str, Shape]]:
    """LyCORIS' wrapper round one model: LoHa here."""
    module = f"lycoris_{target.path}".replace(".", "_")
    if len(target.shape) == 1:
        yield f"{module}.w_norm", target.shape
        return
    out, width, *kernel = target.shape
    for k in kernel:
        width *= k
    for i in (1, 2):
        yield f"{module}.hada_w{i}_a", (out, RANK)
        yield f"{module}.hada_w{i}_b", (RANK, width)


def oft(target: Target) -> Iterator[tuple[str, Shape]]:
    """kohya's OFT, the UNet only."""
    if target.part == "unet" and len(target.shape) > 1:
        module = f"oft_unet_{target.native}".replace(".", "_")
        yield f"{module}.oft_blocks", (4, target.shape[0] // 4, target.shape[0] // 4)
        yield f"{module}.alpha", ()


def comfy(target: Target) -> Iterator[tuple[str, Shape]]:
    """ComfyUI's own saving: module paths of its models."""
    if target.part == "unet":
        yield from _lora(f"diffusion_model.{target.native}", target)
    else:
        yield from _lora(f"text_encoders.{COMFY[target.version, target.part]}.transformer.{target.path}", target)


def processors(target: Target) -> Iterator[tuple[str, Shape]]:
    """diffusers' first LoRA files: attention processors."""
    if not target.is_attention:
        return
    if target.part == "unet":
        block, _, leaf = target.path.removesuffix(".0").rpartition(".")
        yield from _lora(f"unet.{block}.processor.{leaf}_lora", target, "up.weight", "down.weight")
    else:
        block, _, leaf = target.path.rpartition(".")
        yield from _lora(
            f"{DIFFUSERS[target.part]}.{block}.{CLIP_ATTENTION[leaf]}_lora", target, "up.weight", "down.weight"
        )


def diffusers_layers(target: Target) -> Iterator[tuple[str, Shape]]:
    """diffusers before PEFT: `lora` or `lora_linear_layer` modules."""
    if len(target.shape) > 1:
        name = "lora" if target.part == "unet" else "lora_linear_layer"
        yield from _lora(f"{DIFFUSERS[target.part]}.{target.path}", target, f"{name}.up.weight", f"{name}.down.weight")


def diffusers_peft(target: Target) -> Iterator[tuple[str, Shape]]:
    """diffusers with PEFT."""
    if len(target.shape) > 1:
        yield from _lora(f"{DIFFUSERS[target.part]}.{target.path}", target, "lora_B.weight", "lora_A.weight")


def peft(target: Target) -> Iterator[tuple[str, Shape]]:
    """PEFT's own files of one model each, the adapter's name still inside."""
    if len(target.shape) > 1:
        module = f"base_model.model.{target.path}"
        yield from _lora(module, target, "lora_B.default.weight", "lora_A.default.weight")


def omi(target: Target) -> Iterator[tuple[str, Shape]]:
    """OneTrainer's OMI."""
    prefix = "unet" if target.part == "unet" else COMFY[target.version, target.part].replace("clip_h", "clip_l")
    yield from _lora(f"{prefix}.{target.native}", target)


def onetrainer(target: Target) -> Iterator[tuple[str, Shape]]:
    """OneTrainer's backups: kohya's prefixes before paths with dots."""
    prefix = "lora_unet" if target.part == "unet" else KOHYA[target.version, target.part]
    yield from _lora(f"{prefix}.{target.path}", target)


def webui_modules(target: Target) -> Iterator[tuple[str, Shape]]:
    """The webui's own module names, which its built-in takes as they are."""
    if target.part == "unet":
        yield from _lora(f"diffusion_model_{target.native}".replace(".", "_"), target)
        return
    path = target.path
    if WEBUI[target.version, target.part].endswith("model"):  # OpenCLIP's names for the blocks' layers
        if ".encoder.layers." not in path:
            return
        path = path.replace("text_model.encoder.layers", "transformer.resblocks")
        for theirs, ours in OPEN_CLIP.items():
            path = path.replace(theirs, ours)
    yield from _lora(f"{WEBUI[target.version, target.part]}_{path}".replace(".", "_"), target)


DIALECTS = {
    "kohya": kohya,
    "kohya, diffusers names": kohya_diffusers_names,
    "kohya, ldm names": kohya_native_names,
    "LyCORIS wrapper": lycoris,
    "kohya OFT": oft,
    "ComfyUI": comfy,
    "diffusers processors": processors,
    "diffusers layers": diffusers_layers,
    "diffusers PEFT": diffusers_peft,
    "PEFT": peft,
    "OneTrainer OMI": omi,
    "OneTrainer backup": onetrainer,
    "webui modules": webui_modules,
}
MATCHED: dict[tuple[str, str, str], tuple[int, int]] = {}  # (dialect, version, part) -> layers matched, expected
ONE_PART_A_FILE = ("PEFT", "LyCORIS wrapper")
