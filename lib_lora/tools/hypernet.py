"""A hypernetwork as a LoRA: what is linear in it, layer by layer, with the rest told.

A hypernetwork turns the input x of keys and values into x + h(x), so it adds W h(x) to their output. A LoRA adds
B A x. On inputs that the model really sees, B A is the reduced-rank regression of W h(x) on x (Izenman 1975):
the matrix of at most that rank with the least squared error.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig, BadFile
from lib_lora.files.codec import write_network
from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.networks.lora import Lora
from lib_lora.networks.network import Network
from lib_lora.ports import DiffusionModel

ENDS = {"k": (".attn1.to_k", ".attn2.to_k"), "v": (".attn1.to_v", ".attn2.to_v")}
PROMPTS = (
    "a photo of a dog", "a portrait of a woman", "a house on a hill", "a red car", "a still life, oil painting",
    "a map", "a forest in fog", "",
)  # fmt: skip
TIMES = (50, 250, 500, 750, 950)
OLD = {"linear1.": "linear.0.", "linear2.": "linear.1."}
DROPPED = 0.3  # by older hypernetworks
RIDGE = 1e-6  # of the inputs' mean square, so that directions nobody sees stay out
UNREADABLE = (RuntimeError, EOFError, LookupError, ValueError, AttributeError, TypeError, pickle.UnpicklingError)


@dataclass(frozen=True)
class Converted:
    """`residual`: ||W h(x) - B A x|| / ||W h(x)|| over all layers and inputs; `by_layer` for each layer."""

    network: Network
    residual: float
    by_layer: Mapping[LayerKey, float]


def read_hypernetwork(path: Path) -> dict[int, dict[str, nn.Sequential]]:
    """{width: {"k": net, "v": net}} of the webui's .pt file; nothing of it is run. Raises BadFile."""
    try:
        record = torch.load(str(path), map_location="cpu", weights_only=True)
        pairs = {width: states for width, states in record.items() if type(width) is int}
        if not pairs:
            raise ValueError("it holds no pair of nets")
        return {width: {which: _net(width, s, record) for which, s in zip("kv", pair)} for width, pair in pairs.items()}
    except FileNotFoundError:
        raise BadFile(f"no hypernetwork {str(path)!r}; give the path of the webui's .pt file") from None
    except UNREADABLE as error:
        raise BadFile(f"{path} is no hypernetwork of the webui ({error}); give another file") from error


def hypernetwork_to_lora(path: Path, model: DiffusionModel, rank: int, prompts: Sequence[str] = PROMPTS) -> Converted:
    """The nearest LoRA of `rank` for a hypernetwork on `model`. Raises BadFile, and BadConfig if no layer fits."""
    nets = read_hypernetwork(path)
    layers: dict[LayerKey, Any] = {}
    by_layer: dict[LayerKey, float] = {}
    lost = whole = 0.0
    for key, weight, seen in _inputs(model, nets, prompts):
        which = "k" if key.path.endswith(ENDS["k"]) else "v"
        with torch.no_grad():
            wanted = nets[weight.shape[1]][which](seen).double() @ weight.t()  # (n, out)
        layer, error = _regression(seen.double(), wanted, rank)
        size = float(wanted.square().sum())
        layers[key], by_layer[key] = layer, (error / size) ** 0.5 if size else 0.0
        lost, whole = lost + error, whole + size
    if not layers:
        raise BadConfig(f"{path.name} is for widths {sorted(nets)}, none of which {model.name!r} has; use its own base")
    return Converted(Network(path.stem, layers), (lost / whole) ** 0.5 if whole else 0.0, by_layer)


def write_converted(found: Converted, out: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the LoRA, its residual in the metadata."""
    write_network(out, found.network, {"lorakit_residual": f"{found.residual:.6f}"}, dtype)


def _net(width: int, state: Mapping[str, Tensor], record: Mapping[Any, Any]) -> nn.Sequential:
    """The webui's net: Linear, activation (not after the last, unless `activate_output`), LayerNorm, Dropout, ..."""
    widths = record.get("layer_structure") or [1, 2, 1]
    name, drops = record.get("activation_func"), _drops(record, len(widths))
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(int(width * before), int(width * after)))
        if name not in (None, "linear") and (number < len(widths) - 2 or record.get("activate_output", True)):
            layers.append(_activation(str(name)))
        if record.get("is_layer_norm"):
            layers.append(nn.LayerNorm(int(width * after)))
        if drops is not None and drops[number + 1] > 0:
            layers.append(nn.Dropout(drops[number + 1]))
    net = nn.Sequential(*layers)
    renamed = {_new_name(key): tensor.float() for key, tensor in state.items()}
    net.load_state_dict({key.removeprefix("linear."): tensor for key, tensor in renamed.items()})
    return net.eval().requires_grad_(False)


def _drops(record: Mapping[Any, Any], count: int) -> Sequence[float] | None:
    """What is dropped after each width; older files say only whether, the last but one by a switch of its own."""
    told: Sequence[float] | None = record.get("dropout_structure")
    if told is not None or not record.get("use_dropout"):
        return told
    last = float(bool(record.get("last_layer_dropout"))) * DROPPED
    return [0.0, *[DROPPED] * (count - 3), last, 0.0]


def _new_name(key: str) -> str:
    return next((new + key[len(old) :] for old, new in OLD.items() if key.startswith(old)), key)


def _activation(name: str) -> nn.Module:
    """torch's activation of that name, as the webui finds it; "swish" is its name for Hardswish."""
    if name == "swish":
        return nn.Hardswish()
    known = {n.lower(): cls for n, cls in vars(nn.modules.activation).items() if isinstance(cls, type)}
    kind = known.get(name)
    if kind is None or not issubclass(kind, nn.Module):
        raise ValueError(f"activation {name!r} is unknown")
    return kind()


def _inputs(
    model: DiffusionModel, nets: Mapping[int, Any], prompts: Sequence[str]
) -> Iterator[tuple[LayerKey, Tensor, Tensor]]:
    """Each layer that the hypernetwork reads: its weight (out, in) float64 and inputs (n, in) that it sees."""
    modules: dict[LayerKey, Any] = {
        key: module
        for key, module in model.modules_by_key().items()
        if key.part == UNET and key.path.endswith((*ENDS["k"], *ENDS["v"])) and int(module.weight.shape[1]) in nets  # type: ignore[arg-type,union-attr,index]
    }
    seen: dict[LayerKey, list[Tensor]] = {key: [] for key in modules}
    generator = torch.Generator().manual_seed(0)
    device = next(model.roots()[UNET].parameters()).device
    with ExitStack() as stack, torch.no_grad():
        for key, module in modules.items():
            hook = module.register_forward_pre_hook(_Collector(seen[key]))
            stack.callback(hook.remove)
        for prompt in prompts:
            text = model.encode_text([prompt])
            for time in TIMES:
                noisy = torch.randn((1, 4, 16, 16), generator=generator).to(device)
                model.predict(noisy, torch.tensor([time], device=device), text)
    for key, module in sorted(modules.items(), key=lambda item: item[0]):
        yield key, module.weight.detach().double().cpu(), torch.cat(seen[key])


class _Collector:
    def __init__(self, into: list[Tensor]) -> None:
        self.into = into

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.into.append(args[0].detach().float().cpu().flatten(0, -2))


def _regression(x: Tensor, y: Tensor, rank: int) -> tuple[Lora, float]:
    """The rank-limited matrix M (out, in) with the least ||y - x M^T||^2, as a LoRA, and that error."""
    gram = x.t() @ x
    ridge = RIDGE * float(gram.diagonal().mean()) * torch.eye(len(gram), dtype=gram.dtype)
    full = torch.linalg.solve(gram + ridge, x.t() @ y)  # (in, out)
    fitted = x @ full
    directions = torch.linalg.eigh(fitted.t() @ fitted).eigenvectors[:, -rank:]  # (out, rank)
    up, down = directions, (full @ directions).t()
    error = float((y - x @ down.t() @ up.t()).square().sum())
    return Lora(up.float(), down.float(), float(up.shape[1])), error
