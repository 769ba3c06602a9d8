"""The training session over ldm's real UNet: which forwards are replaced, with what, and that all are back after it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.models import attention
from lib_lora.models.attention_modules import replaced_forwards
from lib_lora.models.ldm_session import training_session
from tests.models import live

pytest.importorskip("ldm")


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    made = live.ldm_model(live.unet("sd1"), live.hf_embedder(live.hf_tower(live.TINY))).eval()
    for parameter in made.parameters():
        if parameter.dim() > 1:  # the closing layers of residual branches begin at 0
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return made


@pytest.fixture
def crosses(model: Any) -> list[Any]:
    """Every CrossAttention."""
    return [m for m in model.modules() if type(m).__name__ == "CrossAttention"]


@pytest.fixture
def class_wide(crosses: list[Any]) -> Iterator[Any]:
    """What the webui does: another forward for all of the class. This one gives no gradients."""
    owner = type(crosses[0])
    before = owner.forward
    owner.forward = lambda self, x, context=None, mask=None: before(self, x, context).detach()
    yield owner.forward
    owner.forward = before


def _run(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise, words = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 16, generator=generator)
    return model.model.diffusion_model(noise, torch.tensor([300]), context=words)


def _gradient(model: Any, crosses: list[Any], **settings: Any) -> Tensor:
    factor = torch.zeros(16, 16).requires_grad_()
    hook = crosses[-1].to_v.register_forward_pre_hook(lambda _, given: (given[0] @ (torch.eye(16) + factor),))
    try:
        with training_session(model, **settings):
            _run(model).square().mean().backward()
    finally:
        hook.remove()
    assert factor.grad is not None
    return factor.grad


def test_gradients_do_not_depend_on_what_the_webui_put_into_the_class(
    model: Any, crosses: list[Any], class_wide: Any
) -> None:
    del class_wide
    with torch.no_grad():
        before = _run(model)
    gradients = [_gradient(model, crosses, attention=name) for name in ("auto", "sdpa", "plain")]
    gradients.append(_gradient(model, crosses, gradient_checkpointing=True))
    size = gradients[0].abs().max()
    assert size > 1e-6
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).abs().max() <= 1e-4 * size
    with torch.no_grad():
        assert torch.equal(_run(model), before)
    assert not any("forward" in vars(m) for m in model.modules())


def test_every_attention_uses_the_chosen_kernel(
    model: Any, crosses: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[int] = []

    def counting(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads.append(q.shape[1])
        return attention.plain(q, k, v)

    monkeypatch.setitem(attention.KERNELS, "sdpa", counting)
    with torch.no_grad():
        reference = _run(model)
        with training_session(model) as name:
            assert name == "sdpa" and len(heads) > 0, "the trial ran"
            heads.clear()
            ours = _run(model)
    assert heads == [int(m.heads) for m in crosses] or sorted(heads) == sorted(int(m.heads) for m in crosses)
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


def test_a_kernel_that_does_not_work_leaves_everything_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.KERNELS, "xformers", lambda q, k, v: q * float("nan"))
    model.model.diffusion_model.train()
    flags = [(m.training, "forward" in vars(m)) for m in model.modules()]
    with pytest.raises(BadConfig, match="'xformers' does not work"), training_session(model, attention="xformers"):
        raise AssertionError("not reached")
    assert flags == [(m.training, "forward" in vars(m)) for m in model.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.eval()


@pytest.mark.parametrize("checkpointing, runs", [(False, 1), (True, 2)])
def test_layers_of_text_encoders_are_checkpointed_too(model: Any, checkpointing: bool, runs: int) -> None:
    tower = live.open_clip_tower(live.TINY).eval()
    both = live.sgm_model(nn.Identity(), model.cond_stage_model, live.open_clip_embedder(tower))
    hf = model.cond_stage_model.transformer
    counts = {"hf": 0, "open": 0}

    def count(name: str) -> Any:
        return lambda *_: counts.__setitem__(name, counts[name] + 1)

    handles = [
        hf.text_model.encoder.layers[0].layer_norm1.register_forward_hook(count("hf")),
        tower.transformer.resblocks[0].ln_1.register_forward_hook(count("open")),
    ]
    vectors = torch.randn(1, 77, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    try:
        with training_session(both, gradient_checkpointing=checkpointing):
            ids = torch.zeros(1, 77, dtype=torch.long)
            swap = hf.text_model.embeddings.token_embedding.register_forward_hook(lambda *_: vectors)
            handles.append(swap)
            first = hf(input_ids=ids).last_hidden_state
            second = vectors.transpose(0, 1)
            for block in tower.transformer.resblocks:
                second = block(second, attn_mask=tower.attn_mask)
            (first.square().mean() + second.square().mean()).backward()
    finally:
        for handle in handles:
            handle.remove()
    assert counts == {"hf": runs, "open": runs}
    assert vectors.grad is not None and vectors.grad.abs().max() > 1e-7


def test_somebody_elses_forward_of_an_instance_is_back_afterwards() -> None:
    theirs, ours = nn.Linear(2, 2), nn.Linear(2, 2)
    theirs.__dict__["forward"] = forward = lambda x: x + 1
    other = copy.copy(vars(ours))
    with pytest.raises(RuntimeError, match="boom"), replaced_forwards({theirs: torch.neg, ours: torch.neg}):
        assert theirs(torch.ones(1)) == -1 == ours(torch.ones(1))
        raise RuntimeError("boom")
    assert vars(theirs)["forward"] is forward and theirs(torch.ones(1)) == 2
    assert vars(ours).keys() == other.keys()
