"""Low-rank networks taken out of larger changes: checkpoints, full layers, hypernetworks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_lora.__main__ import main
from lib_lora.errors import BadConfig, BadFile, WrongBaseModel
from lib_lora.files.codec import read_network
from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.networks.full import Full
from lib_lora.networks.norm import Norm
from lib_lora.tools.extract import extract, extract_layers, low_rank
from lib_lora.tools.hypernet import hypernetwork_to_lora, read_hypernetwork
from lib_lora.tools.merge import MergeJob, NetworkUse, merge


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (8, 6, 3, 3), (6, 8, 1, 1)])
def test_low_rank_is_the_truncated_svd(shape: tuple[int, ...]) -> None:
    change = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, v = torch.linalg.svd(change.double().flatten(1), full_matrices=False)
    for rank in (1, 3, 6):
        layer, lost, whole = low_rank(change, rank)
        wanted = (u[:, :rank] * s[:rank]) @ v[:rank]
        got = layer.delta(torch.zeros(shape, dtype=torch.float64)).flatten(1)
        assert torch.allclose(got, wanted, atol=1e-5)
        assert lost == pytest.approx(float(s[rank:].square().sum()), abs=1e-9)
        assert whole == pytest.approx(float(s.square().sum()))
    exact, lost, whole = low_rank(change, 1000)
    assert torch.allclose(exact.delta(torch.zeros(shape)), change, atol=1e-5) and lost < 1e-12 * whole


def test_what_a_lora_cannot_hold_is_part_of_the_residual() -> None:
    keys = [LayerKey(UNET, "mid_block.attentions.0.proj_in"), LayerKey(UNET, "mid_block.attentions.0.norm")]
    layers = {keys[0]: Full(torch.eye(4)), keys[1]: Norm(torch.full((4,), 3.0), torch.full((4,), 4.0))}
    found = extract_layers(layers, {keys[0]: torch.zeros(4, 4), keys[1]: torch.zeros(4)}, rank=2)
    assert list(found.network.layers) == [keys[0]]
    assert found.left_out == 2
    assert found.residual == pytest.approx(((2 + 36 + 64) / (4 + 36 + 64)) ** 0.5)
    with pytest.raises(BadConfig, match="nothing was changed"):
        extract_layers({keys[0]: Full(torch.zeros(4, 4))}, {keys[0]: torch.zeros(4, 4)}, rank=2)


def test_extract_finds_the_lora_that_was_merged(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_file(str(tiny_checkpoint))
    down = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    up = torch.randn(32, 3, generator=torch.Generator().manual_seed(3)) * 0.1
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(3.0)}
    save_file(lora, str(tmp_path / "lora.safetensors"))
    tuned = tmp_path / "tuned.safetensors"
    merge(MergeJob(tiny_checkpoint, [NetworkUse(tmp_path / "lora.safetensors")], tuned))
    out = tmp_path / "out.safetensors"
    assert main(["extract", str(tuned), str(tiny_checkpoint), "-o", str(out), "--rank", "3", "--dtype", "fp32"]) == 0
    assert "1 layers of rank 3" in capsys.readouterr().out
    ((key, layer),) = read_network(out).layers.items()
    weight = base["model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"]
    assert key.path.endswith("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    assert torch.allclose(layer.delta(weight), up @ down, atol=1e-5)
    assert float(read_network(out).metadata["lorakit_residual"]) < 1e-3
    with pytest.raises(BadConfig, match="do not differ"):
        extract(tiny_checkpoint, tiny_checkpoint, out, 3)
    other = {n: t[:, :1].contiguous() if n.endswith("input_blocks.0.0.weight") else t for n, t in base.items()}
    save_file(other, str(tmp_path / "other.safetensors"))
    with pytest.raises(WrongBaseModel, match="another shape"):
        extract(tmp_path / "other.safetensors", tiny_checkpoint, out, 3)


def test_another_number_format_alone_is_no_change(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = load_file(str(tiny_checkpoint))
    name = next(n for n in base if n.endswith("attn1.to_q.weight"))
    tuned = {n: t.half() if t.is_floating_point() else t for n, t in base.items()}
    save_file(tuned, str(tmp_path / "half.safetensors"))
    out = tmp_path / "out.safetensors"
    with pytest.raises(BadConfig, match="do not differ"):
        extract(tmp_path / "half.safetensors", tiny_checkpoint, out, 3)
    tuned[name] = (base[name] + torch.ones_like(base[name])).half()
    save_file(tuned, str(tmp_path / "half.safetensors"))
    for pair in ((tmp_path / "half.safetensors", tiny_checkpoint), (tiny_checkpoint, tmp_path / "half.safetensors")):
        assert len(extract(*pair, out, 3).network.layers) == 1


def test_a_checkpoint_with_nan_is_told_by_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = load_file(str(tiny_checkpoint))
    name = next(n for n in base if n.endswith("attn1.to_q.weight"))
    base[name][0, 0] = float("nan")
    save_file(base, str(tmp_path / "nan.safetensors"))
    with pytest.raises(BadFile, match=rf"{name}.*NaN"):
        extract(tmp_path / "nan.safetensors", tiny_checkpoint, tmp_path / "out.safetensors", 3)


@pytest.mark.parametrize("last", [False, True])
def test_an_older_hypernetwork_says_its_dropouts_in_other_words(tmp_path: Path, last: bool) -> None:
    """Before `dropout_structure` there were two switches, from which the webui counts the layers of its nets."""
    nets = []
    for _ in "kv":
        layers: list[torch.nn.Module] = []
        for number, (before, after) in enumerate([(1, 2), (2, 2), (2, 1)]):
            layers.append(torch.nn.Linear(8 * before, 8 * after))
            if number == 0 or (number == 1 and last):
                layers.append(torch.nn.Dropout(0.3))
        nets.append(torch.nn.Sequential(*layers).eval())
    pair = tuple({f"linear.{name}": t for name, t in net.state_dict().items()} for net in nets)
    about = {"layer_structure": [1, 2, 2, 1], "use_dropout": True, "last_layer_dropout": last}
    torch.save({8: pair, **about}, tmp_path / "old.pt")
    x = torch.randn(3, 8)
    with torch.no_grad():
        assert torch.equal(read_hypernetwork(tmp_path / "old.pt")[8]["k"](x), nets[0](x))


def hypernetwork(path: Path, linear: bool) -> Path:
    """A file as the webui writes it, for the tiny model's cross-attention: h(x) = W2 a(W1 x), of rank 2."""
    source = torch.Generator().manual_seed(4)
    pair = tuple(
        {
            "linear.0.weight": torch.randn(2, 32, generator=source),
            "linear.0.bias": torch.zeros(2),
            f"linear.{1 if linear else 2}.weight": torch.randn(32, 2, generator=source),
            f"linear.{1 if linear else 2}.bias": torch.zeros(32),
        }
        for _ in "kv"
    )
    about = {"layer_structure": [1, 0.0625, 1], "activation_func": "linear" if linear else "relu", "step": 1}
    torch.save({32: pair, **about, "activate_output": False, "name": "h"}, path)
    return path


def test_a_linear_hypernetwork_is_a_lora_and_another_nearly(
    tiny_model: DiffusersModel, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hypernetwork(tmp_path / "h.pt", linear=True)
    nets = read_hypernetwork(path)[32]
    found = hypernetwork_to_lora(path, tiny_model, rank=2)
    modules = tiny_model.modules_by_key()
    widths = {key: modules[key].weight.shape[1] for key in found.network.layers}  # type: ignore[union-attr,index]
    assert set(widths.values()) == {32} and any(".attn2.to_k" in key.path for key in widths)
    assert found.residual < 1e-3
    first, second = (nets["k"][i].weight for i in (0, 1))
    for key, layer in found.network.layers.items():
        if key.path.endswith("attn1.to_k"):  # whose inputs fill their space, but for the mean that a norm takes away
            weight = modules[key].weight
            apart = layer.delta(weight) - weight @ second @ first  # type: ignore[arg-type,operator]
            assert float((apart - apart.mean(1, keepdim=True)).detach().abs().max()) < 1e-2  # of 5

    bent = hypernetwork(tmp_path / "bent.pt", linear=False)
    residuals = [hypernetwork_to_lora(bent, tiny_model, rank=rank).residual for rank in (1, 2, 8)]
    assert 1 > residuals[0] > residuals[1] >= residuals[2] > 0.05
    out = tmp_path / "bent.safetensors"
    assert main(["hypernet", str(bent), "--base", str(tiny_checkpoint), "-o", str(out), "--rank", "2"]) == 0
    assert "of what the hypernetwork adds" in capsys.readouterr().out
    assert len(read_network(out).layers) == len(found.network.layers)


def test_what_is_no_hypernetwork_is_told(tiny_model: DiffusersModel, tmp_path: Path) -> None:
    cases: dict[str, Callable[[Path], object]] = {
        "gone.pt": lambda p: None,
        "text.pt": lambda p: p.write_text("hello"),
        "empty.pt": lambda p: torch.save({"step": 1}, p),
        "odd.pt": lambda p: torch.save({32: ({}, {}), "layer_structure": [1, 1]}, p),
        "strange.pt": lambda p: torch.save({32: ({}, {}), "activation_func": "module"}, p),
    }
    for name, write in cases.items():
        write(tmp_path / name)
        with pytest.raises(BadFile, match=name):
            read_hypernetwork(tmp_path / name)
    path = hypernetwork(tmp_path / "h.pt", linear=True)
    record = torch.load(path)
    torch.save({768: record[32], **{k: v for k, v in record.items() if k != 32}}, path)
    with pytest.raises(BadFile, match="no hypernetwork"):  # its nets are of another width than it says
        hypernetwork_to_lora(path, tiny_model, rank=2)
