"""OpenCLIP's fused attention is trained like transformers' separate projections: same layers, same output, same
gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_lora.keys.layer_key import LayerKey
from lib_lora.models.ldm_layers import LdmLayers
from lib_lora.networks.base import Layer
from lib_lora.networks.network import Network
from lib_lora.patch.patcher import Patcher
from lib_lora.patch.plan import Loaded, Source
from lib_lora.train import keyed
from lib_lora.train.attach import attach
from lib_lora.train.layers import new_layers
from lib_lora.train.sections import NetworkSection
from tests.models import live
from tests.train.zoo import state, stirred

IDS = torch.tensor([[62, 5, 9, 33, 63] + [63] * 72, [62, 7, 63, 63, 63] + [63] * 72])


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    return live.unet("sd2").requires_grad_(False)


def open_clip_states(tower: torch.nn.Module) -> Tensor:
    """As ldm computes them: through the blocks one by one."""
    x = (tower.token_embedding(IDS) + tower.positional_embedding).permute(1, 0, 2)
    first = getattr(tower.transformer, "batch_first", False)
    x = x.permute(1, 0, 2) if first else x
    for block in tower.transformer.resblocks:
        x = block(x, attn_mask=tower.attn_mask)
    return tower.ln_final(x if first else x.permute(1, 0, 2))


@pytest.mark.parametrize("kind", ["lora", "loha", "full"])
def test_fused_and_separate_projections_agree(unet: torch.nn.Module, kind: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf, tower = live.hf_tower(live.TINY, projection=True), live.open_clip_tower(live.TINY)
    live.copy_tower(hf, tower)
    hf, tower = (net.double().eval().requires_grad_(False) for net in (hf, tower))
    network = NetworkSection(type=kind, rank=2, train_unet=False, train_text_encoder=True, train_bias=True)
    fused = LdmLayers(live.ldm_model(unet, live.open_clip_embedder(tower)))
    apart = LdmLayers(live.ldm_model(unet, live.hf_embedder(hf)))
    answers, grads = [], []
    for model, root, run in (
        (fused, tower, lambda: open_clip_states(tower)),
        (apart, hf, lambda: hf(IDS).last_hidden_state),
    ):
        layers = new_layers(model, network, keyed.generator(0))
        assert len(layers) == 3 * 6
        stirred(layers.values())
        before = state(root)
        with attach(model, layers):
            output = run()
            output.square().sum().backward()
        assert state(root) == before
        assert (output - _merged(model, layers, run)).abs().max() < 1e-10
        answers.append(output.detach())
        grads.append({(key, n): p.grad for key, layer in layers.items() for n, p in layer.named_parameters()})
    assert (answers[0] - answers[1]).abs().max() < 1e-10
    assert grads[0].keys() == grads[1].keys()
    largest = max(float(g.abs().max()) for g in grads[1].values())
    for place, gradient in grads[0].items():
        # keys' biases shift all scores of a query alike: their gradient is 0
        assert gradient.any() or "k_proj" in place[0].path, place
        assert (gradient - grads[1][place]).abs().max() < 1e-9 * largest, place


def _merged(model: LdmLayers, layers: dict[LayerKey, Layer], run: object) -> Tensor:
    source = Source((Path("x"), 0, 0, 0))
    with torch.no_grad(), Patcher().applied(model, [Loaded(Network("x", layers), source)]) as report:
        assert report.networks[0].applied == len(layers)
        return run()  # type: ignore[operator]
