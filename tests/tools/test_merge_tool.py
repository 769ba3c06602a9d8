"""Merging into a checkpoint file: one rounding from pristine, exact elsewhere, nothing harmed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_lora.__main__ import main
from lib_lora.errors import BadConfig, WrongBaseModel
from lib_lora.files.codec import write_network
from lib_lora.files.tensors import read_header, read_tensors, write_tensors
from lib_lora.keys.layer_key import LayerKey
from lib_lora.networks.lora import Lora
from lib_lora.networks.network import Network
from lib_lora.networks.tlora import TLora, Triple
from lib_lora.tools.merge import MergeJob, NetworkUse, merge, parse_use

Q = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
CROSS = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
PROJ = "model.diffusion_model.middle_block.1.proj_in.weight"
CONV = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
TEXT = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
KEYS = {
    Q: LayerKey("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"),
    CROSS: LayerKey("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"),
    PROJ: LayerKey("unet", "mid_block.attentions.0.proj_in"),
    CONV: LayerKey("unet", "down_blocks.0.resnets.0.conv1"),
    TEXT: LayerKey("te1", "text_model.encoder.layers.0.mlp.fc1"),
}


@pytest.fixture
def base() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        Q: torch.randn(16, 16).half(),
        CROSS: torch.randn(16, 768).half(),  # as wide as SD1's text states: tells a network's base model
        PROJ: torch.randn(16, 16, 1, 1).half(),
        CONV: torch.randn(16, 16, 3, 3).half(),
        TEXT: torch.randn(32, 16).half(),
        "model.diffusion_model.out.2.weight": torch.randn(4, 16, 3, 3).half(),
        "first_stage_model.decoder.conv_out.weight": torch.randn(3, 8, 3, 3).half(),
        "alphas_cumprod": torch.rand(1000, dtype=torch.float64),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }


def network(seed: int, base: dict[str, Tensor]) -> Network:
    torch.manual_seed(seed)
    layers = {}
    for name, key in KEYS.items():
        width_out, width_in, *kernel = base[name].shape
        ones = (1,) * len(kernel) if name == CONV else ()  # linear factors for the 1x1 convolution
        kernel = kernel if name == CONV else []
        layers[key] = Lora(torch.randn(width_out, 2, *ones) * 0.1, torch.randn(2, width_in, *kernel) * 0.1, 1.5)
    return Network(f"n{seed}", layers)


@pytest.fixture
def files(tmp_path: Path, base: dict[str, Tensor]) -> Path:
    write_tensors(tmp_path / "base.safetensors", base, {"modelspec.title": "b", "sshs_model_hash": "old"})
    for seed in (1, 2):
        write_network(tmp_path / f"n{seed}.safetensors", network(seed, base))
    return tmp_path


def test_one_rounding_from_pristine(files: Path, base: dict[str, Tensor]) -> None:
    uses = [NetworkUse(files / "n1.safetensors", 0.5, 0.8), NetworkUse(files / "n2.safetensors", -1.0, -1.0)]
    reports = merge(MergeJob(files / "base.safetensors", uses, files / "out.safetensors"))
    assert [(r.matched, r.unmatched, r.mismatched, r.unknown) for r in reports] == [(5, (), (), ())] * 2
    out = read_tensors(files / "out.safetensors")
    assert out.keys() == base.keys()
    for name, weight in base.items():
        if name not in KEYS:
            assert torch.equal(out[name], weight)
            continue
        exact = weight.double()
        for seed, use in ((1, uses[0]), (2, uses[1])):
            strength = use.te if name == TEXT else use.unet
            exact = exact + strength * network(seed, base).layers[KEYS[name]].delta(weight.double()).detach()
        assert out[name].dtype == torch.float16
        # float32 sums may fall on the other side of a tie, so one unit in the last place at most, and rarely.
        differs = out[name] != exact.half()
        assert differs.float().mean() < 0.01
        torch.testing.assert_close(out[name].double(), exact, rtol=2**-10, atol=1e-6)
        assert not torch.equal(out[name], weight)
    metadata = read_header(files / "out.safetensors").metadata
    assert metadata["modelspec.title"] == "b"
    assert "sshs_model_hash" not in metadata
    assert json.loads(metadata["lorakit_merged"])[0] == {"name": "n1", "te": 0.5, "unet": 0.8}


def test_the_same_network_twice_adds_up_and_zero_is_exact(files: Path, base: dict[str, Tensor]) -> None:
    path = files / "n1.safetensors"
    out = files / "out.safetensors"
    merge(MergeJob(files / "base.safetensors", [NetworkUse(path, 1, 1), NetworkUse(path, -1, -1)], out))
    assert all(torch.equal(t, base[n]) for n, t in read_tensors(out).items())


def test_dtype_is_for_weights_only(files: Path, base: dict[str, Tensor]) -> None:
    out = files / "out.safetensors"
    merge(MergeJob(files / "base.safetensors", [NetworkUse(files / "n1.safetensors")], out, torch.float32))
    merged = read_tensors(out)
    assert {t.dtype for n, t in merged.items() if n.endswith("weight")} == {torch.float32}
    assert merged["alphas_cumprod"].dtype == torch.float64
    exact = base[Q].double() + network(1, base).layers[KEYS[Q]].delta(base[Q].double()).detach()
    # Sums in float32, in an order of the matrix product's own: two units in the last place.
    torch.testing.assert_close(merged[Q].double(), exact, rtol=2**-22, atol=2**-22)


def test_inputs_are_never_overwritten(files: Path) -> None:
    before = (files / "base.safetensors").read_bytes()
    for target in ("base.safetensors", "n1.safetensors", "./sub/../base.safetensors"):
        (files / "sub").mkdir(exist_ok=True)
        job = MergeJob(files / "base.safetensors", [NetworkUse(files / "n1.safetensors")], files / target)
        with pytest.raises(BadConfig, match="is one of the inputs"):
            merge(job)
    assert (files / "base.safetensors").read_bytes() == before


def test_layers_that_do_not_fit_are_reported(files: Path, base: dict[str, Tensor]) -> None:
    mixed = network(1, base)
    layers = dict(mixed.layers)
    layers[KEYS[TEXT]] = Lora(torch.ones(5, 1), torch.ones(1, 5))
    layers[LayerKey("unet", "conv_in")] = Lora(torch.ones(5, 1), torch.ones(1, 5))
    write_network(files / "mixed.safetensors", Network("mixed", layers))
    job = MergeJob(files / "base.safetensors", [NetworkUse(files / "mixed.safetensors")], files / "out.safetensors")
    (report,) = merge(job)
    assert report.matched == 4
    assert report.unmatched == ("unet:conv_in",)
    assert len(report.mismatched) == 1
    assert report.mismatched[0].startswith("te1:")


def test_a_network_for_another_model_is_refused_before_writing(files: Path) -> None:
    name = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    write_tensors(
        files / "xl.safetensors",
        {f"{name}.lora_up.weight": torch.ones(4, 1), f"{name}.lora_down.weight": torch.ones(1, 4)},
    )
    job = MergeJob(files / "base.safetensors", [NetworkUse(files / "xl.safetensors")], files / "out.safetensors")
    with pytest.raises(WrongBaseModel, match="made for SDXL"):
        merge(job)
    assert not (files / "out.safetensors").exists()


IN_PROJ = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
IN_BIAS = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_bias"
PROJECTION = "conditioner.embedders.1.model.text_projection"
ENTRY = "model.diffusion_model.input_blocks.0.0.weight"
DEEP = "model.diffusion_model.middle_block.1.transformer_blocks.9.attn2.to_k.weight"


def test_sdxl_fused_projections_biases_and_an_inpainting_entry(tmp_path: Path) -> None:
    torch.manual_seed(4)
    base = {
        IN_PROJ: torch.randn(24, 8),
        IN_BIAS: torch.randn(24),
        PROJECTION: torch.randn(8, 6),
        ENTRY: torch.randn(16, 9, 3, 3),
        DEEP: torch.randn(16, 2048),
    }
    v = "lora_te2_text_model_encoder_layers_0_self_attn_v_proj"
    changes = {
        f"{v}.lora_up.weight": torch.randn(8, 2),
        f"{v}.lora_down.weight": torch.randn(2, 8),
        f"{v}.diff_b": torch.randn(8),
        "lora_te2_text_projection.diff": torch.randn(6, 8),
        "lora_unet_input_blocks_0_0.diff": torch.randn(16, 4, 3, 3),
        "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_k.diff": torch.randn(16, 2048),
    }
    write_tensors(tmp_path / "base.safetensors", base)
    write_tensors(tmp_path / "net.safetensors", changes)
    use = NetworkUse(tmp_path / "net.safetensors", 0.5, 2.0)
    (report,) = merge(MergeJob(tmp_path / "base.safetensors", [use], tmp_path / "out.safetensors"))
    assert (report.matched, report.unmatched, report.mismatched, report.unknown) == (4, (), (), ())
    out = read_tensors(tmp_path / "out.safetensors")
    wanted = {name: tensor.clone() for name, tensor in base.items()}
    wanted[IN_PROJ][16:] += 0.5 * changes[f"{v}.lora_up.weight"] @ changes[f"{v}.lora_down.weight"]
    wanted[IN_BIAS][16:] += 0.5 * changes[f"{v}.diff_b"]
    wanted[PROJECTION] += 0.5 * changes["lora_te2_text_projection.diff"].T
    wanted[ENTRY][:, :4] += 2 * changes["lora_unet_input_blocks_0_0.diff"]
    wanted[DEEP] += 2 * changes["lora_unet_middle_block_1_transformer_blocks_9_attn2_to_k.diff"]
    for name, tensor in wanted.items():
        torch.testing.assert_close(out[name], tensor)
        assert not torch.equal(out[name], base[name])
    assert torch.equal(out[IN_PROJ][:16], base[IN_PROJ][:16]) and torch.equal(out[ENTRY][:, 4:], base[ENTRY][:, 4:])


@pytest.mark.parametrize("seed", range(8))
def test_a_layer_that_knows_its_base_weight_again_is_shown_that_weight(
    tmp_path: Path, base: dict[str, Tensor], seed: int
) -> None:
    """T-LoRA looks for its start among the weight's singular vectors, here the last ones."""
    torch.manual_seed(seed)
    weight = torch.randn(48, 48).half().float()
    u, s, v = (t.contiguous() for t in torch.linalg.svd(weight))
    p, values, q = u[:, -2:] + torch.randn(48, 2) * 0.01, s[None, -2:], v[-2:] + torch.randn(2, 48) * 0.01
    layer = TLora(Triple(p, values, q), alpha=2.0)
    write_tensors(tmp_path / "base.safetensors", {**base, Q: weight.half()})
    write_network(tmp_path / "t.safetensors", Network("t", {KEYS[Q]: layer}))
    out = tmp_path / "out.safetensors"
    (report,) = merge(MergeJob(tmp_path / "base.safetensors", [NetworkUse(tmp_path / "t.safetensors")], out))
    assert report.matched == 1
    expected = (weight.double() + layer.delta(weight.double())).detach().half()
    torch.testing.assert_close(read_tensors(out)[Q], expected, rtol=2e-3, atol=1e-3)


def test_a_bias_the_checkpoint_lacks_is_told(files: Path, base: dict[str, Tensor]) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    change = {f"{name}.diff": torch.ones(16, 16), f"{name}.diff_b": torch.ones(16)}
    write_tensors(files / "b.safetensors", change)
    job = MergeJob(files / "base.safetensors", [NetworkUse(files / "b.safetensors")], files / "out.safetensors")
    (report,) = merge(job)
    assert report.matched == 0 and "bias" in report.mismatched[0]
    assert torch.equal(read_tensors(files / "out.safetensors")[Q], base[Q] + 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x.safetensors", NetworkUse(Path("x.safetensors"))),
        ("x.safetensors:0.5", NetworkUse(Path("x.safetensors"), 0.5, 0.5)),
        ("x.safetensors:0.5:-1", NetworkUse(Path("x.safetensors"), 0.5, -1.0)),
        ("C:\\a b\\x.safetensors", NetworkUse(Path("C:\\a b\\x.safetensors"))),
        ("C:\\a b\\x.safetensors:1:0", NetworkUse(Path("C:\\a b\\x.safetensors"), 1.0, 0.0)),
        ("C:/x.safetensors:.5", NetworkUse(Path("C:/x.safetensors"), 0.5, 0.5)),
    ],
)
def test_network_arguments(text: str, expected: NetworkUse) -> None:
    assert parse_use(text) == expected


def test_a_strength_of_nan_is_refused() -> None:
    with pytest.raises(BadConfig, match="'nan'"):
        parse_use("x.safetensors:nan")


class TestCommandLine:
    """Exit codes and output of `merge`."""

    def test_merge(self, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = files / "o.safetensors"
        arguments = ["merge", str(files / "base.safetensors"), f"{files / 'n1.safetensors'}:0.5", "-o", str(out)]
        assert main([*arguments, "--dtype", "fp32", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["networks"][0]["matched"] == 5
        assert out.is_file()
        assert main([*arguments]) == 0
        assert "5 layers merged" in capsys.readouterr().out

    def test_bad_input_is_one_clear_line(self, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["merge", str(files / "base.safetensors"), "no-such", "-o", str(files / "o")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: cannot read no-such")
        assert error.count("\n") == 1


def test_overflow_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    write_tensors(tmp_path / "base.safetensors", {Q: torch.full((4, 4), 60000.0)})
    layers = {KEYS[Q]: Lora(torch.full((4, 1), 100.0), torch.full((1, 4), 100.0))}
    write_network(tmp_path / "net.safetensors", Network("net", layers))
    out = tmp_path / "out.safetensors"
    job = MergeJob(tmp_path / "base.safetensors", [NetworkUse(tmp_path / "net.safetensors")], out, torch.float16)
    with pytest.raises(BadConfig, match="fp32 or bf16"):
        merge(job)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.safetensors", "net.safetensors"]
    merge(MergeJob(job.checkpoint, job.networks, out, torch.bfloat16))
    assert read_tensors(out)[Q].isfinite().all()


def test_a_checkpoint_in_8_bits_is_merged(tmp_path: Path) -> None:
    write_tensors(tmp_path / "base.safetensors", {Q: torch.ones(4, 4).to(torch.float8_e4m3fn)})
    write_network(tmp_path / "net.safetensors", Network("n", {KEYS[Q]: Lora(torch.ones(4, 1), torch.ones(1, 4))}))
    out = tmp_path / "out.safetensors"
    merge(MergeJob(tmp_path / "base.safetensors", [NetworkUse(tmp_path / "net.safetensors")], out))
    assert torch.equal(read_tensors(out)[Q].float(), torch.full((4, 4), 2.0))


def test_the_output_may_not_be_an_input_under_another_name(tmp_path: Path, base: dict[str, Tensor]) -> None:
    write_tensors(tmp_path / "base.safetensors", base)
    write_network(tmp_path / "net.safetensors", Network("n", {KEYS[Q]: Lora(torch.ones(16, 1), torch.ones(1, 16))}))
    (tmp_path / "same.safetensors").hardlink_to(tmp_path / "base.safetensors")  # as names of other case on Windows
    with pytest.raises(BadConfig, match="one of the inputs"):
        merge(
            MergeJob(
                tmp_path / "base.safetensors",
                [NetworkUse(tmp_path / "net.safetensors")],
                tmp_path / "same.safetensors",
            )
        )
