"""Every LyCORIS type in a real webui: our pictures and the built-in's, beside those of a merged reference checkpoint.

    python -m benchmarks.beside_builtin WEBUI --python WEBUI_PYTHON [--trained] [--only oft boft] [--out FOLDER]

For each type, LyCORIS' own modules with random factors stand round every attention layer of the miniature. Their
state dicts make the network file; what their `forward()` computes makes, as a plain weight, a reference checkpoint.
The webui then draws: the reference without a tag, the base with the tag by us, the base with the tag by its built-in
Lora extension. Numbers are 8-bit differences from the reference, largest and mean. Needs lycoris-lora 4.

With --trained the files are our own engine's, of a few steps on the miniature, and the reference is the base merged
with the file by `lib_lora.tools.merge`. All that the built-in reads wrongly then is told by its column.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lib_lora.keys.checkpoint import checkpoint_layer_map, default_targets
from lib_lora.keys.layer_key import LayerKey
from lib_lora.miniature import place
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.tools.merge import MergeJob, NetworkUse, merge
from lib_lora.train.config import make_job
from lib_lora.train.engine import train
from tests.webui.conftest import Server, serving

ROOT = Path(__file__).resolve().parents[1]
PREFIXES = {"unet": "lora_unet_", "te1": "lora_te_"}
PROMPT = "a red circle on a blue background"
# type: (module of lycoris, class, arguments, spread of the random factors, 3x3 convolutions too)
TYPES: dict[str, tuple[str, str, dict[str, Any], float, bool]] = {
    "lora": ("locon", "LoConModule", {"lora_dim": 4, "alpha": 2}, 0.08, False),
    "locon": ("locon", "LoConModule", {"lora_dim": 4, "alpha": 2}, 0.08, True),
    "tucker": ("locon", "LoConModule", {"lora_dim": 4, "alpha": 4, "use_tucker": True}, 0.12, True),
    "rslora": ("locon", "LoConModule", {"lora_dim": 4, "alpha": 2, "rs_lora": True}, 0.06, False),
    "dora out": ("locon", "LoConModule", {"lora_dim": 4, "alpha": 2, "weight_decompose": True}, 0.05, False),
    "dora in": (
        *("locon", "LoConModule"),
        {"lora_dim": 4, "alpha": 2, "weight_decompose": True, "wd_on_out": False},
        *(0.05, False),
    ),
    "loha": ("loha", "LohaModule", {"lora_dim": 4, "alpha": 2}, 0.25, True),
    "loha tucker": ("loha", "LohaModule", {"lora_dim": 4, "alpha": 4, "use_tucker": True}, 0.3, True),
    "lokr": ("lokr", "LokrModule", {"lora_dim": 4, "alpha": 2, "factor": 4}, 0.12, True),
    "lokr full": ("lokr", "LokrModule", {"lora_dim": 10000, "alpha": 1, "factor": 4}, 0.12, True),
    "lokr both": ("lokr", "LokrModule", {"lora_dim": 1, "alpha": 1, "factor": 8, "decompose_both": True}, 0.2, True),
    "lokr dora": ("lokr", "LokrModule", {"lora_dim": 4, "alpha": 2, "factor": 4, "weight_decompose": True}, 0.1, False),
    "ia3 out": ("ia3", "IA3Module", {}, 0.1, True),
    "ia3 in": ("ia3", "IA3Module", {"train_on_input": True}, 0.1, True),
    "full": ("full", "FullModule", {}, 0.002, True),
    "glora": ("glora", "GLoRAModule", {"lora_dim": 4, "alpha": 2}, 0.06, False),
    "oft": ("diag_oft", "DiagOFTModule", {"lora_dim": 4}, 0.05, False),
    "oft constrained": ("diag_oft", "DiagOFTModule", {"lora_dim": 4, "constraint": 0.01}, 0.05, False),
    "oft rescaled": ("diag_oft", "DiagOFTModule", {"lora_dim": 4, "rescaled": True}, 0.05, False),
    "boft": ("boft", "ButterflyOFTModule", {"lora_dim": 4}, 0.05, False),
}

STEPS = 6
# type: settings of the job that trains it
TRAINED: dict[str, dict[str, Any]] = {
    "lora": {},
    "locon": {},
    "loha": {},
    "lokr": {"network.factor": 4},
    "ia3": {},
    "glora": {},
    "full": {},
    "norm": {},
    "dylora": {},
    "oft": {},
    "boft": {},
    "lora rslora": {"network.rslora": True},
    "lora dora": {"network.dora": True},
    "lora dora rows": {"network.dora": True, "network.dora_axis": "rows"},
    "locon tucker": {"network.tucker": True},
    "loha tucker": {"network.tucker": True},
    "full bias": {"network.train_bias": True},
    "lora norms": {"network.train_norms": True},
}


def base_module(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """The layer a weight belongs to; a convolution keeps its size (padding as in SD)."""
    out, width, *kernel = weight.shape
    module: Any = nn.Conv2d(width, out, tuple(kernel), padding=kernel[0] // 2) if kernel else nn.Linear(width, out)
    module.weight.data = weight
    module.bias = nn.Parameter(bias) if bias is not None else None
    return module


def weight_of_forward(module: Callable[[Tensor], Tensor], weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight that `module`'s forward uses, read off its answers to unit inputs."""
    width, kernel = weight.shape[1], weight.shape[2:]
    eye = torch.eye(width, dtype=dtype)
    if not kernel:
        return (module(eye) - module(torch.zeros_like(eye))).T
    size = 2 * kernel[0] - 1
    unit = torch.zeros(width, width, size, size, dtype=dtype)
    unit[:, :, size // 2, size // 2] = eye
    answer = module(unit) - module(torch.zeros_like(unit))
    low, high = size // 2 - kernel[0] // 2, size // 2 + kernel[0] // 2 + 1
    return answer[:, :, low:high, low:high].flip(2, 3).transpose(0, 1)


def make(kind: str, checkpoint: Path, folder: Path) -> tuple[Path, Path]:
    """(network file, reference checkpoint) of one type."""
    module_name, class_name, arguments, spread, convolutions = TYPES[kind]
    theirs = getattr(__import__(f"lycoris.modules.{module_name}", fromlist=["x"]), class_name)
    dtype = torch.float32 if "oft" in module_name else torch.float64  # theirs inverts in float32 only
    generator = torch.Generator().manual_seed(3)
    network: dict[str, Tensor] = {}
    with safe_open(str(checkpoint), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    for name, key in checkpoint_layer_map(tensors).items():
        if not _wanted(key, tensors[name], convolutions):
            continue
        bias = tensors.get(name.removesuffix("weight") + "bias")
        base = base_module(tensors[name].to(dtype), None if bias is None else bias.to(dtype))
        layer = theirs("x", base, 1.0, **arguments).to(dtype)
        with torch.no_grad():
            for own, parameter in layer.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * spread
                # Magnitudes start at the base's own and change a little; all else gets small numbers.
                kept = own.endswith(("dora_scale", "rescale"))
                parameter.copy_(parameter * (1 + noise) if kept else noise)
            state = layer.custom_state_dict() or layer.state_dict()
            if module_name == "full":  # theirs takes the base off once more unless it stands in the base's place
                state = {name: t for name, t in (("diff", layer.weight), ("diff_b", layer.bias)) if t is not None}
            # The file's precision is what both programs read, so the reference uses it too.
            layer.load_state_dict({n: t.float().to(dtype) for n, t in layer.state_dict().items()})
            tensors[name] = weight_of_forward(layer, tensors[name], dtype).float().contiguous()
            if bias is not None:
                answer = layer(torch.zeros(1, *base.weight.shape[1:], dtype=dtype))  # type: ignore[index, union-attr]
                tensors[name.removesuffix("weight") + "bias"] = answer.flatten(1)[0, :: answer[0, 0].numel()].float()
        for tensor_name, tensor in state.items():
            if not tensor_name.startswith("org_module"):
                network[f"{PREFIXES[key.part]}{key.flat}.{tensor_name}"] = tensor.detach().float().contiguous()
    stem = kind.replace(" ", "_")
    path, reference = (
        folder / "models" / "Lora" / f"{stem}.safetensors",
        checkpoint.with_name(f"ref_{stem}.safetensors"),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(network, str(path))
    save_file(tensors, str(reference))
    reference.with_suffix(".yaml").write_bytes(checkpoint.with_suffix(".yaml").read_bytes())
    return path, reference


def train_one(kind: str, checkpoint: Path, folder: Path) -> tuple[Path, Path]:
    """(network file, reference checkpoint) of one type, trained by us."""
    job = make_job(
        {
            "base.checkpoint": str(checkpoint),
            "data.folder": str(_pictures(folder)),
            "data.trigger": "sks",
            "data.resolution": 128,
            "network.type": kind.split()[0],
            "network.rank": 4,
            "network.alpha": 4.0,
            "network.train_text_encoder": True,
            "optimizer.lr": 5e-3,
            "optimizer.te_lr": 1e-3,
            "training.steps": STEPS,
            "output.folder": str(folder / "runs"),
            "output.network_folder": str(folder / "models" / "Lora"),
            "output.name": kind.replace(" ", "_"),
            "output.dtype": "fp32",
            "output.sidecar": False,
            **TRAINED[kind],
        }
    )
    path = train(job, load_checkpoint(checkpoint)).file
    reference = checkpoint.with_name(f"ref_{path.stem}.safetensors")
    merge(MergeJob(checkpoint, [NetworkUse(path)], reference))
    reference.with_suffix(".yaml").write_bytes(checkpoint.with_suffix(".yaml").read_bytes())
    return path, reference


def _pictures(folder: Path) -> Path:
    """Two pictures to train on."""
    place_of = folder / "pictures"
    if not place_of.is_dir():
        place_of.mkdir()
        for name, colour in (("one", "red"), ("two", "green")):
            picture = Image.new("RGB", (128, 128), "white")
            ImageDraw.Draw(picture).ellipse((20, 30, 100, 110), fill=colour)
            picture.save(place_of / f"{name}.png")
            (place_of / f"{name}.txt").write_text(f"a {colour} sks circle", encoding="utf-8")
    return place_of


def _wanted(key: LayerKey, weight: Tensor, convolutions: bool) -> bool:
    if key.part not in PREFIXES:
        return False
    if key.path in default_targets(key.part):
        return True
    return convolutions and ".resnets." in key.path and weight.dim() == 4


def draw(server: Server, prompt: str, checkpoint: Path, ours: bool) -> Any:
    """One picture, int32 (H, W, 3)."""
    settings = {"sd_model_checkpoint": checkpoint.name, "lorakit_apply": ours}
    return server.picture(prompt, override_settings=settings, override_settings_restore_afterwards=False)[0]


def compare(server: Server, kind: str, checkpoint: Path, reference: Path, out: Path | None) -> str:
    """One row of the table."""
    stem = kind.replace(" ", "_")
    plain = draw(server, PROMPT, checkpoint, True)
    wanted = draw(server, PROMPT, reference, True)
    rows = []
    pictures = [plain, wanted]
    for ours in (True, False):
        got = draw(server, f"{PROMPT} <lora:{stem}:1>", checkpoint, ours)
        difference = numpy.abs(got - wanted)
        rows.append(f"{difference.max():4d} {difference.mean():7.2f}")
        pictures.append(got)
    again = "yes" if numpy.array_equal(plain, draw(server, PROMPT, checkpoint, True)) else "NO"
    half = [draw(server, f"{PROMPT} <lora:{stem}:0.5>", checkpoint, ours) for ours in (True, False)]
    apart = numpy.abs(half[0] - half[1])
    if out is not None:
        strip = numpy.concatenate([*pictures, *half], axis=1).astype(numpy.uint8)
        Image.fromarray(strip).save(out / f"{stem}.png")
    effect = numpy.abs(wanted - plain).mean()
    return f"{kind:16} {effect:8.2f}   {rows[0]}   {rows[1]}   {apart.max():4d} {apart.mean():7.2f}   {again}"


def main() -> None:
    """Make the files, start the webui, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("webui", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--trained", action="store_true", help="files that our own engine trains")
    parser.add_argument("--only", nargs="*", help="types: " + ", ".join(dict.fromkeys([*TYPES, *TRAINED])))
    parser.add_argument("--out", type=Path, help="where to put strips: base, reference, ours, built-in, both at 0.5")
    args = parser.parse_args()
    known, made = (list(TRAINED), train_one) if args.trained else (list(TYPES), make)
    kinds = args.only or known
    if not set(kinds) <= set(known):
        parser.error(f"--only takes {', '.join(known)}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary)
        models = data / "models" / "Stable-diffusion"
        models.mkdir(parents=True)
        checkpoint = place.export(models)
        (data / "extensions").mkdir()
        (data / "extensions" / ROOT.name).symlink_to(ROOT)
        (data / "config.json").write_text(json.dumps({"sd_checkpoint_cache": 0}), encoding="utf-8")
        references = {kind: made(kind, checkpoint, data)[1] for kind in kinds}
        with serving(args.webui, args.python, data, ["--ckpt", str(checkpoint)]) as server:
            print(f"{'type':16} {'effect':>8}   {'ours':>12}   {'built-in':>12}   {'apart at 0.5':>12}   plain again")
            for kind in kinds:
                print(compare(server, kind, checkpoint, references[kind], args.out), flush=True)


if __name__ == "__main__":
    main()
