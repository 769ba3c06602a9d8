"""LdmLayers: which model it is, that every layer has its place, and that the model runs what is applied there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora.errors import WrongBaseModel
from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey
from lib_lora.keys.text_encoder import text_encoder_paths, text_targets
from lib_lora.keys.unet import NATIVE, conv_targets, transformer_targets, unet_paths
from lib_lora.models.ldm_layers import LdmLayers, why_not
from lib_lora.networks.base import Layer, LayerSpec
from lib_lora.networks.lora import Lora
from lib_lora.networks.network import Network
from lib_lora.patch.patcher import Loaded, Patcher, Source
from lib_lora.ports import Patchable, Slot
from lib_lora.prompt import Strengths
from tests.models import live

pytest.importorskip("ldm")
COUNTS = {"sd1": {TE1: 72}, "sd2": {TE1: 144}, "sdxl": {TE1: 72, TE2: 192}}


@pytest.mark.parametrize("version", ["sd1", "sd2", "sdxl"])
def test_every_layer_of_a_real_sized_model_has_its_place(version: str) -> None:
    model = live.full(version)
    layers = LdmLayers(model)
    assert layers.version == version and why_not(model) is None
    slots = layers.slots()
    by_part = {part: {k.path for k in slots if k.part == part} for part in (UNET, TE1, TE2)}
    assert by_part[UNET] == set(unet_paths(version))
    assert len(set(transformer_targets(version)) & by_part[UNET]) == (722 if version == "sdxl" else 192)
    assert set(conv_targets(version)) <= by_part[UNET]
    assert {part: sum(p in by_part[part] for p in text_targets(32)) for part in COUNTS[version]} == COUNTS[version]
    native = NATIVE[version]
    for key, slot in slots.items():
        if key.part == UNET:
            assert model.model.diffusion_model.get_submodule(native[key.path]) is slot.module
        weight = getattr(slot.module, slot.weight)
        assert isinstance(weight, Tensor) and weight.is_meta
        assert slot.bias is None or hasattr(slot.module, slot.bias)


@pytest.mark.parametrize("version", ["sd1", "sd2", "sdxl"])
def test_no_parameter_of_the_model_is_without_a_place(version: str) -> None:
    model = live.full(version)
    named = [(slot.module, name) for slot in LdmLayers(model).slots().values() for name in (slot.weight, slot.bias)]
    placed = {id(getattr(module, name)) for module, name in named if name is not None}
    conditioner = getattr(model, "conditioner", model.cond_stage_model)
    parameters = [*model.model.diffusion_model.named_parameters(), *conditioner.named_parameters()]
    left = {name.rpartition(".")[2] for name, parameter in parameters if id(parameter) not in placed}
    assert left <= {"logit_scale"} and len(parameters) > 800


def test_rows_and_transposes() -> None:
    slots = LdmLayers(live.full("sdxl")).slots()
    block = "text_model.encoder.layers.31"
    assert slots[LayerKey(TE2, f"{block}.self_attn.k_proj")].rows == slice(1280, 2560)
    assert slots[LayerKey(TE2, "text_projection")].transposed
    first = slots[LayerKey(TE1, "text_model.encoder.layers.11.self_attn.k_proj")]
    assert first.rows is None and first.module.weight.shape == (768, 768)
    for part in (TE1, TE2):
        words = slots[LayerKey(part, "text_model.embeddings.token_embedding")]
        assert isinstance(words.module, nn.Embedding), "the webui's wrapper is seen through"
        assert words.bias is None


def _refiner() -> Any:
    return live.sgm_model(live.unet("sd1"), live.wrapped(live.open_clip_embedder(live.open_clip_tower(live.TINY))))


def test_a_refiner_is_known_and_has_no_layers() -> None:
    layers = LdmLayers(_refiner())
    assert layers.version == "sdxl-refiner" and not layers.slots()
    lora = random_layer((8, 8), 1)
    report = Patcher().apply(layers, [loaded(Network("n", {LayerKey(TE1, "text_projection"): lora}))])
    assert report.networks[0].unmatched == ("te1:text_projection",)


class BertSeriesModelWithTransformation(nn.Module):
    """Alt-diffusion's text encoder, as far as its structure is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.roberta, self.transformation = nn.Linear(2, 2), nn.Linear(2, 2)


class MMDiT(nn.Module):
    """SD3's transformer."""


def test_other_models_are_refused_with_the_reason() -> None:
    unet = live.unet("sd1")
    alt = live.ldm_model(unet, BertSeriesModelWithTransformation())
    three = SimpleNamespace(model=SimpleNamespace(diffusion_model=MMDiT()), cond_stage_model=nn.Module())
    odd = live.sgm_model(unet, nn.Linear(1, 1))
    cases = [(alt, "BertSeriesModelWithTransformation"), (three, "MMDiT"), (odd, "SDXL"), (None, "NoneType")]
    for model, words in cases:
        assert words in str(why_not(model))
        with pytest.raises(WrongBaseModel, match=f"{words}.*load a checkpoint of SD 1.x, SD 2.x or SDXL"):
            LdmLayers(model)


def test_identity_tells_loads_and_models_apart() -> None:
    unet, tower = live.unet("sd1"), live.hf_embedder(live.hf_tower(live.TINY))
    one = live.ldm_model(unet, tower)
    assert LdmLayers(one).base_identity() == LdmLayers(one).base_identity()
    others = [LdmLayers(one, generation=1), LdmLayers(live.ldm_model(live.unet("sd1"), tower))]
    named = live.ldm_model(unet, tower)
    named.sd_checkpoint_info = SimpleNamespace(filename="other.safetensors")
    others.append(LdmLayers(named))
    assert len({layers.base_identity() for layers in [LdmLayers(one), *others]}) == 4


class Plain:
    """`Patchable` over modules of transformers or diffusers, whose paths are the canonical ones."""

    version = "sdxl"

    def __init__(self, roots: dict[str, nn.Module]) -> None:
        self.roots = roots

    def slots(self) -> dict[LayerKey, Slot]:
        found = [(part, path, m) for part, root in self.roots.items() for path, m in root.named_modules()]
        return {LayerKey(part, path): Slot(m) for part, path, m in found if isinstance(getattr(m, "weight", 0), Tensor)}

    def base_identity(self) -> str:
        return "plain"


def random_layer(shape: tuple[int, ...], seed: int) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    layer = Lora.init(LayerSpec(shape, 2, 2.0), generator)
    layer.up.data.normal_(std=0.2, generator=generator)
    return layer.double()


def loaded(network: Network) -> Loaded:
    return Loaded(network, Source((Path("/n.safetensors"), 1, 1, 0), Strengths(0.7, 0.7)))


def network_on(plain: Plain, paths: dict[str, tuple[str, ...]]) -> Network:
    """A random low-rank layer for every one of the paths."""
    slots = plain.slots()
    keys = [LayerKey(part, path) for part, some in paths.items() for path in some]
    return Network("n", {key: random_layer(tuple(slots[key].module.weight.shape), i) for i, key in enumerate(keys)})


def agree(model: Patchable, plain: Plain, network: Network, run: dict[str, Any], tolerance: float = 1e-10) -> None:
    """Ours and the reference give the same numbers without the network, with it, and without it again."""
    patchers = Patcher(), Patcher()
    outputs: list[Tensor] = []
    for loads in ([], [loaded(network)], []):
        for patcher, where in zip(patchers, (model, plain), strict=True):
            assert patcher.apply(where, loads).complete
        with torch.no_grad():
            ours, reference = run["ours"](), run["reference"]()
        assert (ours - reference).abs().max() <= tolerance * reference.abs().max()
        outputs.append(ours)
    assert (outputs[1] - outputs[0]).abs().max() > 100 * tolerance * outputs[0].abs().max()
    assert torch.equal(outputs[0], outputs[2])


TEXT_CASES = {
    "all": text_targets(3),
    "q and v only": tuple(p for p in text_targets(3) if p.endswith(("q_proj", "v_proj"))),
    "k of one block": ("text_model.encoder.layers.1.self_attn.k_proj",),
    "out": tuple(p for p in text_targets(3) if p.endswith("out_proj")),
    "the projection": ("text_projection",),
    "embeddings": tuple(f"text_model.embeddings.{name}_embedding" for name in ("token", "position")),
}


@pytest.mark.parametrize("case", TEXT_CASES)
def test_an_open_clip_tower_computes_what_transformers_does_with_the_same_network(case: str) -> None:
    torch.manual_seed(0)
    hf, tower = live.hf_tower(live.TINY, projection=True).double().eval(), live.open_clip_tower(live.TINY)
    for parameter in hf.parameters():
        nn.init.normal_(parameter, std=0.3)
    live.copy_tower(hf, tower.double().eval())
    tokens = torch.randint(0, 60, (2, 77))
    tokens[:, 0], tokens[:, 20:] = 62, 63
    model = live.sgm_model(
        live.unet("sdxl"), live.hf_embedder(live.hf_tower(live.TINY)), live.open_clip_embedder(tower)
    )

    def pooled() -> Tensor:
        return tower.encode_text(tokens)

    plain = Plain({TE2: hf})
    run = {"ours": pooled, "reference": lambda: hf(input_ids=tokens).text_embeds}
    agree(LdmLayers(model), plain, network_on(plain, {TE2: TEXT_CASES[case]}), run)


def test_the_tables_of_the_tower_name_every_layer_of_transformers() -> None:
    hf = live.hf_tower(live.TINY, projection=True)
    weights = {path for path, m in hf.named_modules() if isinstance(getattr(m, "weight", None), Tensor)}
    assert weights == set(text_encoder_paths(3, projection=True))


def test_sdxls_unet_computes_what_diffusers_does_with_the_same_network() -> None:
    context = live.UNETS["sdxl", live.TINY][1]
    torch.manual_seed(0)
    reference, ours = live.diffusers_unet("sdxl", sizes=2), live.unet("sdxl").eval()
    live.share_unet_weights(ours, reference, "sdxl")
    noise, time, text = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 7, context)
    pooled, sizes = torch.randn(1, 4), torch.tensor([[64.0, 48.0, 0.0, 3.0]])
    from ldm.modules.diffusionmodules.util import timestep_embedding

    # sgm hands over pooled text and embedded sizes as one vector; diffusers embeds the sizes by itself.
    told = torch.cat([pooled, timestep_embedding(sizes.flatten(), 2).flatten()[None]], dim=1)
    added = {"text_embeds": pooled, "time_ids": sizes}
    towers = live.hf_embedder(live.hf_tower(live.TINY)), live.open_clip_embedder(live.open_clip_tower(live.TINY))
    model, plain = live.sgm_model(ours, *towers), Plain({UNET: reference})
    run = {
        "ours": lambda: ours(noise, time, context=[text] * 10, y=told),  # ldm wants one for each block
        "reference": lambda: reference(noise, time, text, added_cond_kwargs=added).sample,
    }
    agree(LdmLayers(model), plain, network_on(plain, {UNET: unet_layers(reference)}), run, 1e-4)


def unet_layers(unet: nn.Module) -> tuple[str, ...]:
    """All but the norms."""
    return tuple(path for path, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))


@pytest.mark.parametrize("channels", [5, 8, 9])
def test_more_channels_than_latents(channels: int) -> None:
    """Depth, editing and inpainting models: the file's four channels change the first four."""
    unet = live.unet("sd1", channels=channels)
    model = LdmLayers(live.ldm_model(unet, live.hf_embedder(live.hf_tower(live.TINY))))
    conv = unet.input_blocks[0][0]
    before = conv.weight.detach().clone()
    layer = random_layer((32, 4, 3, 3), 1)
    assert Patcher().apply(model, [loaded(Network("n", {LayerKey(UNET, "conv_in"): layer}))]).complete
    delta = 0.7 * layer.delta(before[:, :4].double())
    want = before.double() + nn.functional.pad(delta, (0, 0, 0, 0, 0, channels - 4))
    torch.testing.assert_close(conv.weight.detach(), want.float())
    assert torch.equal(conv.weight[:, 4:], before[:, 4:])
