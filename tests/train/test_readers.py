"""Trained files read by others: LyCORIS, PEFT and diffusers make the same weights of them as we do."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.files.codec import read_network
from lib_lora.keys.layer_key import LayerKey
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.networks.network import Network
from lib_lora.tools.convert import ConvertJob, convert
from tests.networks.matrix import WORST
from tests.tools.test_convert import merged
from tests.train.trained import CASES, Make, job_of, run

TIGHT = 1e-6  # relative to the change, computed in float64
PREFIXES = {"unet": "lora_unet_", "te1": "lora_te_"}
Answers = dict[LayerKey, Tensor]


def base_of(model: DiffusersModel, key: LayerKey) -> Any:
    """A copy of the layer's module in float64."""
    return copy.deepcopy(model.modules_by_key()[key]).double()


@torch.no_grad()
def changed(base: Any, weight: Tensor, bias: Tensor | None) -> Any:
    """The module with another weight, and bias if there is one."""
    base.weight.copy_(weight)
    if bias is not None:
        base.bias.copy_(bias)
    return base


@torch.no_grad()
def ours(model: DiffusersModel, network: Network) -> dict[LayerKey, Any]:
    """Every layer's module with the network applied, in float64."""
    found: dict[LayerKey, Any] = {}
    for key, layer in network.layers.items():
        base = base_of(model, key)
        weight = base.weight + layer.delta(base.weight) if layer.changes_weight else base.weight
        found[key] = changed(base, weight, base.bias + layer.bias_delta(base.bias) if layer.changes_bias else None)
    return found


def of_each_kind(network: Network, model: DiffusersModel) -> Network:
    """The network with one layer of each name and shape: blocks repeat them."""
    kinds: dict[Any, LayerKey] = {}
    for key in network.layers:
        shape = tuple(model.modules_by_key()[key].weight.shape)  # type: ignore[union-attr,arg-type]
        kinds[key.part, re.sub(r"\d+", "", key.path.partition("blocks")[2]), shape] = key
    return dataclasses.replace(network, layers={key: network.layers[key] for key in kinds.values()})


def weights(modules: Mapping[LayerKey, Any]) -> Answers:
    return {key: module.weight.detach() for key, module in modules.items()}


def agree(reader: str, name: str, plain: Answers, mine: Answers, theirs: Answers) -> None:
    """Every layer's change is the same; the worst error, relative to the change, goes into the suite's table."""
    assert mine.keys() == theirs.keys() and mine
    sizes = {key: float((mine[key] - plain[key]).abs().max()) for key in mine}
    worst = max(float((mine[key] - theirs[key]).abs().max()) / sizes[key] for key in mine)
    WORST["trained " + name, reader] = worst
    assert worst < TIGHT, (name, reader, worst)
    # In the middle, at this size a single pixel, attention learns next to nothing.
    assert sum(size > 1e-4 for size in sizes.values()) > 0.9 * len(mine)


def inputs(module: Any) -> Tensor:
    """What the module takes, in float64."""
    wide = isinstance(module, (nn.Conv2d, nn.GroupNorm))
    width = module.weight.shape[1 if module.weight.dim() > 1 else 0]
    source = torch.Generator().manual_seed(4)
    return torch.randn((2, width, 5, 5) if wide else (2, 3, width), generator=source, dtype=torch.float64)


def lycoris_module(state: Mapping[str, Tensor], key: LayerKey, base: Any) -> Any:
    """What LyCORIS' own reader makes of a layer's tensors, round a module."""
    modules = importlib.import_module("lycoris.modules")
    name = PREFIXES[key.part] + key.path.replace(".", "_")
    kind, parameters = modules.get_module(state, name)
    last = parameters[-1]
    if kind.__name__ == "IA3Module":  # whose maker does not take what its reader found, on_input
        made = kind(name, base, 1.0, train_on_input=bool(parameters[1]))
        made.weight.data.copy_(parameters[0])
    elif (
        kind.__name__ == "LoConModule" and last is not None and last.shape[0] == 1
    ):  # its maker knows DoRA of rows only
        up, down, _, alpha, magnitude = parameters
        made = kind(name, base, 1.0, len(down), float(alpha), weight_decompose=True, wd_on_out=False)
        for own, tensor in ((made.lora_up.weight, up), (made.lora_down.weight, down), (made.dora_scale, magnitude)):
            own.data.copy_(tensor)
    else:
        made = modules.make_module(kind, parameters, name, base)
    made = made.double().eval()
    if kind.__name__ == "FullModule":  # its forward pass wants to stand in the base's place
        change, bias = made.get_diff_weight(1.0)
        return changed(base, base.weight + change, None if bias is None else base.bias + bias)
    return changed(base, *made.make_weight()) if kind.__name__ == "NormModule" else made


@pytest.mark.parametrize("name", CASES)
def test_lycoris(trained: Make, tiny_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pytest.importorskip("lycoris")
    file = trained(name).file
    state, mine = load_file(str(file)), ours(tiny_model, of_each_kind(read_network(file), tiny_model))
    answers: tuple[Answers, Answers, Answers] = ({}, {}, {})
    with torch.no_grad(), monkeypatch.context() as patch:
        # It inverts, and keeps DoRA's norms, in float32: lift that, or its rounding would hide ours.
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        for key, module in mine.items():
            x, base = inputs(module), base_of(tiny_model, key)
            modules = (base, module, lycoris_module(state, key, base_of(tiny_model, key)))
            for kept, one in zip(answers, modules):
                kept[key] = one(x)
    agree("LyCORIS", name, *answers)


PEFT = ("lora", "locon", "loha", "loha tucker", "dylora", "ia3", "lora dora rows", "lora rslora", "locon tucker")


@pytest.mark.parametrize("name", PEFT)
def test_peft(trained: Make, tiny_model: DiffusersModel, tmp_path: Path, name: str) -> None:
    peft = pytest.importorskip("peft")
    file = trained(name).file
    # PEFT's IA3 scales biases as well: text encoders' keys and values, which have one, stay behind.
    report = convert(ConvertJob(file, tmp_path / "out", "peft", partial=name == "ia3"))
    assert len(report.skipped) == (24 if name == "ia3" else 0)
    theirs: Answers = {}
    for part, folder, root in (("unet", "unet", tiny_model.unet), ("te1", "text_encoder", tiny_model.text_encoder)):
        if (tmp_path / "out" / folder).is_dir():
            loaded = peft.PeftModel.from_pretrained(copy.deepcopy(root).double(), str(tmp_path / "out" / folder))
            for path, weight in merged(loaded).items():
                theirs[LayerKey(part, path.removeprefix("base_model.model."))] = weight
    mine = weights(ours(tiny_model, read_network(file)))
    assert len(theirs) == len(mine) - len(report.skipped)
    # PEFT keeps IA3 as 1 + w, rounded to float32: the error is one of the weight then, not of its change.
    part_of = 0.0 if name == "ia3" else 1.0
    plain = {key: part_of * base_of(tiny_model, key).weight.detach() for key in theirs}
    agree("peft", name, plain, {key: mine[key] for key in theirs}, theirs)


@pytest.mark.parametrize("name", sorted(CASES.keys() - {*PEFT}))
def test_what_peft_has_no_form_for_is_refused(trained: Make, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadConfig, match="cannot be written whole as 'peft'"):
        convert(ConvertJob(trained(name).file, tmp_path / "out", "peft"))


@pytest.fixture
def old_transformers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers asks for a newer transformers than the webui's before it loads anything."""
    pytest.importorskip("peft")
    for name in ("lora_pipeline", "unet", "lora_base"):
        module = importlib.import_module(f"diffusers.loaders.{name}")
        monkeypatch.setattr(module, "USE_PEFT_BACKEND", True, raising=False)


@pytest.mark.usefixtures("old_transformers_too")
@pytest.mark.parametrize("name", ["lora", "locon", "dylora", "lora rslora"])  # DoRA only as converted
def test_diffusers_loads_the_file_itself(trained: Make, tiny_model: DiffusersModel, name: str) -> None:
    """Its own conversion of kohya's names, then its own loading into the UNet; text encoders are told by names."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    file = trained(name).file
    state, alphas = Loader.lora_state_dict(str(file.parent), weight_name=file.name)
    unet = copy.deepcopy(tiny_model.unet).double()
    Loader.load_lora_into_unet(dict(state), network_alphas=dict(alphas), unet=unet, adapter_name="x")
    theirs = {LayerKey("unet", path): weight for path, weight in merged(unet).items()}
    plain = {key: base_of(tiny_model, key).weight.detach() for key in theirs}
    mine = {key: own for key, own in weights(ours(tiny_model, read_network(file))).items() if key.part == "unet"}
    agree("diffusers", name, plain, mine, theirs)
    text = {re.split(r"[._]lora", n)[0] for n in state if n.startswith("text_encoder.")}
    assert len(text) == CASES[name].layers[1]


@pytest.mark.parametrize("name", ["lora", "lokr"])
def test_half_precision_is_the_same_network_rounded(
    trained: Make, tiny_model: DiffusersModel, pictures: Path, tmp_path: Path, name: str
) -> None:
    wide = trained(name)
    half = run(job_of(name, pictures, tmp_path, **{"output.dtype": "fp16"}), tiny_model)
    assert torch.equal(half.attached, wide.attached)
    one, two = load_file(str(wide.file)), load_file(str(half.file))
    assert one.keys() == two.keys()
    for tensor, full in one.items():
        assert torch.equal(two[tensor], full if tensor.endswith(".alpha") else full.half())
    mine, theirs = (weights(ours(tiny_model, read_network(made.file))) for made in (wide, half))
    for key in mine:
        plain = base_of(tiny_model, key).weight.detach()
        # Two or three factors, each number of them rounded by 2^-11 of itself at most
        assert (mine[key] - theirs[key]).abs().max() < 4 * 3 * 2.0**-11 * (mine[key] - plain).abs().max()
