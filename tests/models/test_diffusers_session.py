"""The training session over diffusers' UNet: by which kernel its attention is computed; all is back after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.keys.layer_key import UNET
from lib_lora.models import attention
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.train.frozen import frozen


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Heads of each call of the kernel that stands for xformers."""
    heads: list[int] = []

    def counting(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads.append(q.shape[1])
        return attention.plain(q, k, v)

    monkeypatch.setitem(attention.KERNELS, "xformers", counting)
    return heads


def attentions(model: DiffusersModel) -> list[Any]:
    return [module for module in model.unet.modules() if type(module).__name__ == "Attention"]


def run(model: DiffusersModel) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 4, 8, 8, generator=generator)
    return model.predict(noise, torch.tensor([300, 700]), model.encode_text(["a dog", "a red ball on grass"]))


def gradient(model: DiffusersModel, name: str, checkpointing: bool = False) -> Tensor:
    layer = attentions(model)[1].to_v
    factor = torch.zeros(layer.in_features, layer.in_features).requires_grad_()
    same = torch.eye(layer.in_features)
    hook = layer.register_forward_pre_hook(lambda _, given: (given[0] @ (same + factor),))
    try:
        with frozen(model, checkpointing=checkpointing, attention=name):
            run(model).square().mean().backward()
    finally:
        hook.remove()
    assert factor.grad is not None
    return factor.grad


def test_every_attention_uses_the_kernel_that_was_chosen(tiny_model: DiffusersModel, counted: list[int]) -> None:
    found = attentions(tiny_model)
    with torch.no_grad():
        before = run(tiny_model)
        with frozen(tiny_model, checkpointing=False, attention="xformers"):
            assert counted, "the trial ran"
            counted.clear()
            ours = run(tiny_model)
        after = run(tiny_model)
    assert sorted(counted) == sorted(int(module.heads) for module in found) and len(found) > 10
    torch.testing.assert_close(ours, before, rtol=1e-4, atol=1e-5)
    assert torch.equal(after, before)
    assert not any("forward" in vars(module) for module in tiny_model.unet.modules())


def test_gradients_are_the_same_by_every_kernel(tiny_model: DiffusersModel, counted: list[int]) -> None:
    first = gradient(tiny_model, "auto")
    assert not counted and first.abs().max() > 1e-9
    for name, checkpointing in (("plain", False), ("xformers", False), ("xformers", True)):
        other = gradient(tiny_model, name, checkpointing)
        assert (other - first).abs().max() <= 1e-3 * first.abs().max()
    assert len(counted) > 3 * len(attentions(tiny_model)), "twice where blocks are computed again"


def test_sdpa_is_what_diffusers_takes_by_itself(tiny_model: DiffusersModel) -> None:
    for name in ("auto", "sdpa"):
        with frozen(tiny_model, checkpointing=False, attention=name):
            assert not any("forward" in vars(module) for module in tiny_model.unet.modules())


def test_where_sdpa_does_not_work_another_is_taken(
    tiny_model: DiffusersModel, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention.KERNELS, "sdpa", lambda q, k, v: q * float("nan"))
    with frozen(tiny_model, checkpointing=False), torch.no_grad():
        counted.clear()
        run(tiny_model)
    assert len(counted) == len(attentions(tiny_model))


def test_a_kernel_that_does_not_work_leaves_everything_alone(
    tiny_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention.KERNELS, "xformers", lambda q, k, v: q * float("nan"))
    flags = [p.requires_grad for p in tiny_model.unet.parameters()]
    with pytest.raises(BadConfig, match="'xformers' does not work here.*NaN"):
        with frozen(tiny_model, checkpointing=True, attention="xformers"):
            raise AssertionError("not reached")
    assert flags == [p.requires_grad for p in tiny_model.unet.parameters()]
    assert not any("forward" in vars(module) for module in tiny_model.unet.modules())


def test_a_model_without_a_session_of_its_own_has_no_choice() -> None:
    class Model:
        def roots(self) -> dict[str, nn.Module]:
            return {UNET: nn.Linear(2, 2)}

    model: Any = Model()
    with frozen(model, checkpointing=False, attention="sdpa"):
        pass
    with pytest.raises(BadConfig, match="base.attention = 'plain' is not for this model"):
        with frozen(model, checkpointing=False, attention="plain"):
            raise AssertionError("not reached")
