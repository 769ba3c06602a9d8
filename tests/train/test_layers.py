"""New layers are LyCORIS' in shape and in what they compute; settings reach them; a file's layers can be trained on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.files.codec import write_network
from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.models.any_module import ModuleModel
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.networks.base import Layer, innermost
from lib_lora.networks.dylora import DyLora
from lib_lora.networks.network import Network
from lib_lora.train import keyed
from lib_lora.train.attach import attach
from lib_lora.train.layers import layers_for, new_layers
from lib_lora.train.sections import NetworkSection
from tests.train.zoo import BASE, fresh, section, stirred, zoo

# ours -> LyCORIS' algorithm and arguments
PAIRS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "locon": ({"type": "locon"}, "locon", {}),
    "locon tucker": ({"type": "locon", "tucker": True}, "locon", {"use_tucker": True}),
    "locon dora": ({"type": "locon", "dora": True}, "locon", {"dora_wd": True, "wd_on_output": False}),
    "loha dora rows": (
        {"type": "loha", "dora": True, "dora_axis": "rows", "alpha": 4.0, "conv_alpha": 2.0},
        "loha",
        {"dora_wd": True, "wd_on_output": True},
    ),
    "loha": ({"type": "loha"}, "loha", {}),
    "loha tucker": ({"type": "loha", "tucker": True}, "loha", {"use_tucker": True}),
    "lokr": ({"type": "lokr", "rank": 1}, "lokr", {}),
    "lokr factor 4": ({"type": "lokr", "rank": 1, "factor": 4}, "lokr", {"factor": 4}),
    "lokr factor 5": ({"type": "lokr", "rank": 1, "factor": 5}, "lokr", {"factor": 5}),
    "lokr full": ({"type": "lokr", "full_matrix": True, "factor": 8}, "lokr", {"full_matrix": True, "factor": 8}),
    "lokr both": (
        {"type": "lokr", "rank": 1, "conv_rank": 1, "decompose_both": True},
        "lokr",
        {"decompose_both": True},
    ),
    "lokr tucker": ({"type": "lokr", "conv_rank": 1, "tucker": True}, "lokr", {"use_tucker": True}),
    "glora": ({"type": "glora"}, "glora", {}),
    "ia3": ({"type": "ia3"}, "ia3", {}),
    "full": ({"type": "full", "train_bias": True}, "full", {}),
    "oft": ({"type": "oft", "rank": 8, "conv_rank": 8}, "diag-oft", {}),
    "oft 16": ({"type": "oft", "rank": 16, "conv_rank": 16}, "diag-oft", {}),
    "oft 7": ({"type": "oft", "rank": 7, "conv_rank": 7}, "diag-oft", {}),
    "oft constraint": (
        {"type": "oft", "rank": 8, "conv_rank": 8, "constraint": 2.0**-7, "rescale": True},
        "diag-oft",
        {"constraint": 2.0**-7, "rescaled": True},
    ),
    "boft": ({"type": "boft", "rank": 12, "conv_rank": 12}, "boft", {}),
    "boft rescale": ({"type": "boft", "rank": 8, "conv_rank": 8, "rescale": True}, "boft", {"rescaled": True}),
}
PLACES = {"wide": (2, 5, 48), "conv": (2, 40, 6, 7), "point": (2, 32, 4, 5), "down": (2, 48, 8, 8)}


class Layered(nn.Module):
    """What LyCORIS can go round."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(48, 64)
        self.conv = nn.Conv2d(40, 32, 3, padding=1)
        self.point = nn.Conv2d(32, 48, 1)
        self.down = nn.Conv2d(48, 48, 3, stride=2, padding=1)


@pytest.fixture
def without_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """LyCORIS inverts and keeps DoRA's norms in float32 (`.float()`): lift that, or its rounding would hide ours."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def lycoris_layers(net: nn.Module, algo: str, network: NetworkSection, more: dict[str, Any]) -> dict[str, Any]:
    wrapper = pytest.importorskip("lycoris.wrapper")
    wrapper.LycorisNetwork.apply_preset({"enable_conv": True, "target_module": [], "target_name": list(PLACES)})
    made = wrapper.create_lycoris(
        net,
        1.0,
        linear_dim=network.rank,
        linear_alpha=network.alpha,
        algo=algo,
        conv_dim=network.conv_rank,
        conv_alpha=network.conv_alpha,
        **more,
    )
    return {lora.lora_name.removeprefix("lycoris_"): lora.double().eval() for lora in made.loras}


def theirs_as_file(theirs: Any) -> dict[str, Tensor]:
    names = {"weight": "diff", "bias": "diff_b"} if type(theirs).__name__ == "FullModule" else {}
    return {names.get(name, name): parameter for name, parameter in theirs.named_parameters()}


@pytest.mark.usefixtures("without_float")
@pytest.mark.parametrize("name", PAIRS)
def test_shapes_and_outputs_are_lycoris(name: str) -> None:
    ours, algo, more = PAIRS[name]
    torch.manual_seed(2)
    net = Layered().double().eval().requires_grad_(False)
    network = NetworkSection(**{**BASE, **ours})
    model = ModuleModel(net)
    layers = {key.path: layer for key, layer in fresh(model, network).items()}
    others = lycoris_layers(net, algo, network, more)
    assert layers.keys() == others.keys() == PLACES.keys()
    for path, layer in layers.items():
        tensors = {n: t for n, t in layer.to_tensors().items() if n not in ("alpha", "on_input")}
        parameters = theirs_as_file(others[path])
        assert {n: tuple(t.shape) for n, t in tensors.items()} == {n: tuple(p.shape) for n, p in parameters.items()}
        if "dora_scale" in tensors:
            assert torch.allclose(tensors["dora_scale"].double(), parameters["dora_scale"], rtol=1e-6)
    stirred(layers.values())
    for path, shape in PLACES.items():
        x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
        with torch.no_grad():
            for parameter_name, parameter in theirs_as_file(others[path]).items():
                parameter.copy_(layers[path].to_tensors()[parameter_name])
            expected = others[path](x)
            if name.startswith("loha"):  # its gamma is a float32 tensor made of a float: exact here
                assert math.frexp(layers[path].scale)[0] in (0.5, 0.75)
            with attach(model, {LayerKey(UNET, path): layers[path]}):
                output = net.get_submodule(path)(x)
        assert (output - net.get_submodule(path)(x)).abs().max() > 1e-3
        assert (output - expected).abs().max() < 1e-10 * expected.abs().max(), path


def test_ia3_of_inputs_is_lycoris_preset(tiny_model: DiffusersModel) -> None:
    layers = new_layers(tiny_model, NetworkSection(type="ia3", train_text_encoder=True), keyed.generator(0))
    columns = {key.path.rpartition(".")[2] for key, layer in layers.items() if getattr(layer, "columns", False)}
    assert columns == {"2", "fc2"}  # ff.net.2, mlp.fc2
    assert len(layers) == 80 + 36


def test_alpha_in_files() -> None:
    _, model = zoo(torch.float32)
    for name, network in (("lora", section(rslora=True)), ("glora", section("glora", rslora=True))):
        for key, layer in fresh(model, network).items():
            rank, alpha = (2, 1.5) if key.path == "block.conv" else (4, 3.0)
            assert layer.rank == rank and layer.scale == pytest.approx(alpha / math.sqrt(rank)), name
            assert float(layer.to_tensors()["alpha"]) == pytest.approx(alpha * math.sqrt(rank))


def test_rslora_is_lycoris() -> None:
    locon = pytest.importorskip("lycoris.modules.locon")
    theirs = locon.LoConModule("x", nn.Linear(16, 24), lora_dim=3, alpha=2.0, rs_lora=True)
    layer = fresh(zoo(torch.float32)[1], section(rslora=True, rank=3, alpha=2.0))[LayerKey(UNET, "block.wide")]
    assert layer.scale == pytest.approx(theirs.scale) and layer.alpha == pytest.approx(float(theirs.alpha))


def test_dora_columns_are_one_by_in() -> None:
    _, model = zoo(torch.float32)
    shapes = {
        key.path: layer.to_tensors()["dora_scale"].shape for key, layer in fresh(model, section("lora dora")).items()
    }
    assert shapes["block.wide"] == (1, 16) and shapes["block.conv"] == (1, 16, 1, 1)
    rows = {
        key.path: layer.to_tensors()["dora_scale"].shape
        for key, layer in fresh(model, section("lora dora rows")).items()
    }
    assert rows["block.wide"] == (24, 1) and rows["block.attn.k_proj"] == (24, 1)


def test_ranks_by_pattern() -> None:
    _, model = zoo(torch.float32)
    layers = fresh(model, section(ranks=(r"attn\.=8:2.5", r"attn\.q=1", "conv$=6", "a=b=3")))
    found = {key.path.removeprefix("block."): (layer.rank, layer.alpha) for key, layer in layers.items()}
    assert found["attn.q_proj"] == (8, 2.5) and found["conv"] == (6, 1.5) and found["wide"] == (4, 3.0)
    for line in ("attn", "attn=", "attn=0", "attn=2:0", "attn=2:x", "attn=2:inf", "(=3"):
        with pytest.raises(BadConfig, match="network.ranks"):
            fresh(model, section(ranks=(line,)))


def test_two_calls_are_equal_and_another_seed_is_not() -> None:
    _, model = zoo(torch.float32)
    one, two = (fresh(model, section("loha")) for _ in range(2))
    other = new_layers(model, section("loha"), keyed.generator(1, "layers"))
    assert one.keys() == two.keys() == other.keys()
    for key in one:
        a, b, c = (layers[key].hada_w1_a for layers in (one, two, other))
        assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("full", {"dora": True}, "network.dora"),
        ("ia3", {"dora": True}, "network.dora"),
        ("dylora", {"unit": 3}, "network.unit = 3 does not divide rank 4"),
        ("boft", {"rank": 2}, "too small for BOFT"),
    ],
)
def test_what_does_not_go_together_is_refused(name: str, changes: dict[str, Any], text: str) -> None:
    _, model = zoo(torch.float32)
    with pytest.raises(BadConfig, match=text):
        fresh(model, section(name, **changes))


CONTINUED = [
    "lora",
    "lora dora",
    "lora dora bias norms",
    "locon tucker",
    "loha",
    "lokr factor",
    "ia3",
    "full bias norms",
]
CONTINUED += ["glora", "dylora", "dylora dora", "oft constraint rescale", "boft", "norm"]


@pytest.mark.parametrize("name", CONTINUED)
def test_a_file_is_trained_on(name: str, tmp_path: Path) -> None:
    net, model = zoo(torch.float32)
    layers = fresh(model, section(name))
    stirred(layers.values(), torch.float32)
    path = tmp_path / "earlier.safetensors"
    write_network(path, Network("earlier", layers), dtype=torch.float16, names=model.names())
    again = layers_for(model, section(name, continue_from=str(path)), keyed.generator(1), model.known())
    assert again.keys() == layers.keys()
    for key, layer in again.items():
        assert type(innermost(layer)) is type(innermost(layers[key]))
        assert all(p.dtype == torch.float32 and p.requires_grad for p in layer.parameters())
        before = {n: t.half().float() if t.numel() > 1 else t for n, t in layers[key].to_tensors().items()}
        assert all(torch.equal(t, before[n]) for n, t in layer.to_tensors().items() if n != "on_input")
    with attach(model, again):
        net(torch.tensor([[1, 2, 3, 4]])).square().sum().backward()
    assert not [str(key) for key, la in again.items() for p in la.parameters() if p.grad is None or not p.grad.any()]


def test_a_kohya_file_is_trained_on(tmp_path: Path, tiny_model: DiffusersModel) -> None:
    network = NetworkSection(rank=2, train_text_encoder=True)
    layers = new_layers(tiny_model, network, keyed.generator(0))
    path = tmp_path / "kohya.safetensors"
    write_network(path, Network("kohya", layers))
    again = layers_for(tiny_model, NetworkSection(continue_from=str(path), train_text_encoder=True), keyed.generator(0))
    assert {key: layer.rank for key, layer in again.items()} == dict.fromkeys(layers, 2)
    with pytest.raises(BadConfig, match="72 layers of part te1.*network.train_text_encoder = true"):
        layers_for(tiny_model, NetworkSection(continue_from=str(path)), keyed.generator(0))


def test_what_a_file_cannot_be(tmp_path: Path) -> None:
    _, model = zoo(torch.float32)
    path = tmp_path / "earlier.safetensors"

    def start(layers: dict[LayerKey, Layer], **settings: Any) -> Any:
        names = {key: key.path for key in layers}
        write_network(path, Network("x", layers), names=names)
        network = NetworkSection(continue_from=str(path), **settings)
        return layers_for(model, network, keyed.generator(0), {name: key for key, name in names.items()})

    lora = fresh(model, section())
    for settings, text in (
        ({"type": "loha"}, "is of type 'lora'.*'loha'"),
        ({"dora": True}, "has no DoRA.*set network.dora = false"),
        ({"train_unet": False}, "network.train_unet = true"),
    ):
        with pytest.raises(BadConfig, match=text):
            start(lora, **settings)
    with pytest.raises(BadConfig, match="set network.dora = true"):
        start(fresh(model, section("lora dora")))
    with pytest.raises(BadConfig, match="does not know|no Tucker form"):
        start(fresh(model, section("locon tucker")), type="dylora", unit=1)
    key = LayerKey(UNET, "block.wide")
    with pytest.raises(BadConfig, match="do not fit a weight"):
        start({key: lora[LayerKey(UNET, "block.narrow")]})
    with pytest.raises(BadConfig, match="no layer unet:elsewhere"):
        start({LayerKey(UNET, "elsewhere"): lora[key]})
    write_network(path, Network("x", lora), names=model.names())
    with pytest.raises(BadConfig, match="tensors belong to no layer"):
        layers_for(model, NetworkSection(continue_from=str(path)), keyed.generator(0), {"block.wide": key})


def test_a_lora_becomes_units(tmp_path: Path) -> None:
    _, model = zoo(torch.float32)
    lora = fresh(model, section())
    stirred(lora.values(), torch.float32)
    path = tmp_path / "earlier.safetensors"
    write_network(path, Network("x", lora), names=model.names())
    network = section("dylora", continue_from=str(path))
    again = layers_for(model, network, keyed.generator(0), model.known())
    for key, layer in again.items():
        assert isinstance(layer, DyLora) and layer.unit == 2
        assert all(torch.equal(t, lora[key].to_tensors()[n]) for n, t in layer.to_tensors().items())
