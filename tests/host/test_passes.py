"""Pictures that are drawn while another is being drawn: each gets its own networks, and no other's."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_lora.host.tag import LoraTag
from tests.host.fakes import Picture, at, weight, words


@pytest.fixture
def encoded(webui: Any) -> list[Any]:
    """The changed weight at each time that a picture's texts are encoded."""
    webui.prompt_parser = SimpleNamespace(
        reconstruct_multicond_batch=lambda cond, step: ([], cond), reconstruct_cond_batch=lambda uncond, step: uncond
    )
    return []


def _picture(webui: Any, encoded: list[Any]) -> Picture:
    made = Picture()
    made.setup_conds = lambda: encoded.append(weight(webui).detach().clone())
    return made


def _step(tag: LoraTag, p: Any, step: int = 3) -> None:
    params = at(step, p)
    params.denoiser.sampler = SimpleNamespace(sampler_extra_args={"cond": "", "uncond": ""})
    tag.step(params)


@pytest.mark.parametrize("inside", [["loud", "0.25"], None])
@pytest.mark.parametrize("outside", [["loud"], None])
@pytest.mark.parametrize("told", [True, False])
def test_after_a_picture_inside_the_outer_one_goes_on_with_its_own(
    webui: Any, tag: LoraTag, encoded: list[Any], inside: Any, outside: Any, told: bool
) -> None:
    """Whether the webui tells the inner one's end depends on its tags and scripts."""
    original = weight(webui).detach().clone()
    outer, inner = _picture(webui, encoded), _picture(webui, encoded)
    tag.activate(outer, [words(*outside)] if outside else [])
    _step(tag, outer)
    tag.activate(inner, [words(*inside)] if inside else [])
    _step(tag, inner)
    assert torch.allclose(weight(webui), original + (0.5 if inside else 0))
    assert encoded == []
    if told:
        tag.deactivate(inner)
    outer.cached_c[0] = "may be the inner one's"
    _step(tag, outer)
    assert torch.allclose(weight(webui), original + (2 if outside else 0))
    if inside or outside:
        assert len(encoded) == 1 and torch.equal(encoded[0], weight(webui)) and outer.cached_c[0] is None
    _step(tag, outer, 4)
    assert len(encoded) <= 1


def test_two_inside_one_another(webui: Any, tag: LoraTag, encoded: list[Any]) -> None:
    original = weight(webui).detach().clone()
    pictures = [_picture(webui, encoded) for _ in range(3)]
    for p, strength in zip(pictures, ("1", "0.5", "0.25")):
        tag.activate(p, [words("loud", strength)])
    for p, added in list(zip(pictures, (2, 1, 0.5)))[::-1]:
        _step(tag, p)
        assert torch.allclose(weight(webui), original + added)
        tag.deactivate(p)


def test_nothing_keeps_a_picture_in_memory(tag: LoraTag) -> None:
    p = Picture()
    seen = weakref.ref(p)
    tag.activate(p, [words("loud", "1", "stop=4")])  # and no `deactivate`, as after an error
    del p
    gc.collect()
    assert seen() is None
