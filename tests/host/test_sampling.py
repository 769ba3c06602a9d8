"""Strengths that change while the webui samples, and a model that is swapped in mid-picture."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_lora.host.tag import LoraTag
from tests.host.fakes import Picture, at, weight, words


def _nobody() -> Picture:
    """The picture that the webui makes up to encode an empty text."""
    made = Picture()
    made.steps, made.all_prompts, made.seeds = 50, None, None
    return made


class TestStrengthsOverTime:
    def test_steps_change_the_strength_and_the_end_restores(self, webui: Any, tag: LoraTag, picture: Any) -> None:
        original = weight(webui).detach().clone()
        tag.activate(picture, [words("loud", "1", "start=2", "stop=4")])
        seen = []
        for step in range(8):
            tag.step(at(step, picture))
            seen.append(round(float((weight(webui) - original).mean()), 3))
        assert seen == [0, 0, 2, 2, 0, 0, 0, 0]
        tag.deactivate(picture)
        tag.activate(picture, [])
        assert torch.equal(weight(webui), original)

    def test_two_calls_a_step_count_once(self, webui: Any, tag: LoraTag, picture: Any) -> None:
        original = weight(webui).detach().clone()
        tag.activate(picture, [words("loud", "1", "stop=4")])
        seen = []
        for call in range(16):
            params = at(call, picture)
            params.denoiser.total_steps = 16
            tag.step(params)
            seen.append(bool((weight(webui) != original).any()))
        assert seen == [True] * 8 + [False] * 8

    def test_before_1_8_the_denoiser_is_the_samplers(self, webui: Any, tag: LoraTag, picture: Any) -> None:
        original = weight(webui).detach().clone()
        tag.activate(picture, [words("loud", "1", "stop=4")])
        params = at(5, picture)
        picture.sampler = SimpleNamespace(model_wrap_cfg=params.denoiser)
        del params.denoiser
        tag.step(params)
        assert torch.equal(weight(webui), original)

    def test_an_adaptive_sampler_is_told_by_its_noise(self, webui: Any, tag: LoraTag, picture: Any) -> None:
        original = weight(webui).detach().clone()
        tag.activate(picture, [words("loud", "1", "stop=4")])
        seen = []
        for sigma in (10.0, 1.01, 0.99, 0.1, 0.0):
            params = at(0, picture, sigma=torch.tensor([sigma]))
            params.denoiser.p.sampler_name = "DPM adaptive"
            params.denoiser.inner_model = SimpleNamespace(sigmas=torch.tensor([0.1, 1.0, 10.0]))
            tag.step(params)
            seen.append(bool((weight(webui) != original).any()))
        assert seen == [True, True, False, False, False]

    def test_the_hires_pass_has_its_own_strength(self, webui: Any, tag: LoraTag, picture: Any) -> None:
        original = weight(webui).detach().clone()
        params = [words("loud", "1", "hr=0.25")]
        tag.activate(picture, params)
        assert torch.allclose(weight(webui), original + 2)
        picture.hr_extra_network_data = {"lora": params}  # with --lowvram they come before the first pass, too
        tag.activate(picture, params)
        assert torch.allclose(weight(webui), original + 0.5)

    def test_an_error_is_told_once_and_nothing_stays_applied(
        self, webui: Any, tag: LoraTag, picture: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = weight(webui).detach().clone()
        tag.activate(picture, [words("loud", "1", "stop=4")])
        monkeypatch.setattr(tag.runtime, "advance", lambda *_: 1 / 0)
        for step in range(3):
            tag.step(at(step, picture))
        assert sum("division" in comment for comment in picture.comments) == 1
        assert torch.equal(weight(webui), original)


class TestRefiner:
    """The webui swaps the model in mid-sampling, encodes the texts with it, and activates nothing."""

    @pytest.fixture
    def encoded(self, webui: Any, picture: Any) -> list[Any]:
        """The changed weight at each time that the texts are encoded."""
        seen: list[Any] = []
        picture.setup_conds = lambda: seen.append(weight(webui).detach().clone())
        webui.prompt_parser = SimpleNamespace(
            reconstruct_multicond_batch=lambda cond, step: ([], f"{cond} {step}"),
            reconstruct_cond_batch=lambda uncond, step: f"{uncond} {step}",
        )
        return seen

    def _at(self, step: int, p: Any) -> SimpleNamespace:
        params = at(step, p)
        params.denoiser.sampler = SimpleNamespace(sampler_extra_args={"cond": "old", "uncond": "old"})
        new = {"cond": "new", "uncond": "no"}
        params.denoiser.update_inner_model = lambda: params.denoiser.sampler.sampler_extra_args.update(new)
        return params

    def test_a_refiner_that_is_loaded_gets_the_networks_and_the_texts_are_encoded_with_them(
        self, webui: Any, tag: LoraTag, picture: Any, encoded: list[Any]
    ) -> None:
        original = weight(webui).detach().clone()
        tag.activate(picture, [words("loud", "1", "stop=6")])
        picture.cached_c[0] = "with the base model"
        with torch.no_grad():
            weight(webui).copy_(original + 10)  # other weights in the same objects
        tag.host.model_loaded(webui.shared.sd_model)
        tag.activate(_nobody(), [])  # for the webui's empty text
        assert torch.equal(weight(webui), original + 10)
        params = self._at(5, picture)
        tag.step(params)
        assert torch.allclose(weight(webui), original + 12) and picture.cached_c[0] is None
        assert torch.equal(encoded[0], weight(webui)) and len(encoded) == 1
        assert (params.text_cond, params.text_uncond) == ("new 5", "no 5")
        tag.step(self._at(6, picture))
        assert torch.equal(weight(webui), original + 10) and len(encoded) == 1, "its schedule goes on"
        assert picture.comments == ["loud: 1 layers applied"]

    def test_one_that_was_in_memory_is_noticed_at_the_next_call(
        self, webui: Any, tag: LoraTag, picture: Any, encoded: list[Any]
    ) -> None:
        base = webui.shared.sd_model
        original = weight(webui).detach().clone()
        tag.activate(picture, [words("loud")])
        refiner = copy.deepcopy(base)
        with torch.no_grad():
            refiner.model.diffusion_model.input_blocks[0][0].weight.copy_(original + 10)
        webui.shared.sd_model = refiner
        tag.step(self._at(5, picture))
        tag.step(self._at(6, picture))
        assert torch.allclose(weight(webui), original + 12)
        assert torch.equal(encoded[0], weight(webui)) and len(encoded) == 1
        assert torch.equal(base.model.diffusion_model.input_blocks[0][0].weight, original)

    def test_a_checkpoint_loaded_between_pictures_gets_nothing(
        self, webui: Any, tag: LoraTag, picture: Any, encoded: list[Any]
    ) -> None:
        original = weight(webui).detach().clone()
        tag.activate(picture, [words("loud")])
        tag.deactivate(picture)
        with torch.no_grad():
            weight(webui).copy_(original + 10)
        tag.host.model_loaded(webui.shared.sd_model)
        tag.activate(_nobody(), [])
        tag.step(self._at(0, picture))
        assert torch.equal(weight(webui), original + 10) and encoded == []

    def test_the_next_pass_of_the_picture_is_its_own(
        self, webui: Any, tag: LoraTag, picture: Any, encoded: list[Any]
    ) -> None:
        original = weight(webui).detach().clone()
        tag.activate(picture, [words("loud")])
        tag.activate(_nobody(), [])
        tag.activate(picture, [words("loud", "1", "start=4")])
        tag.step(self._at(0, picture))
        assert torch.equal(weight(webui), original) and encoded == []
        tag.step(self._at(4, picture))
        assert torch.allclose(weight(webui), original + 2) and encoded == []

    def test_whoever_activates_something_else_meanwhile_does_not_cost_the_networks(
        self, webui: Any, tag: LoraTag, picture: Any, encoded: list[Any]
    ) -> None:
        original = weight(webui).detach().clone()
        tag.activate(picture, [words("loud")])
        for _ in range(2):
            tag.activate(_nobody(), [])
        tag.step(self._at(3, picture))
        assert torch.allclose(weight(webui), original + 2) and len(encoded) == 1
        tag.activate(_nobody(), [])
        tag.activate(picture, [words("loud", "0.5")])
        tag.activate(_nobody(), [])
        tag.step(self._at(3, picture))
        assert torch.allclose(weight(webui), original + 1) and len(encoded) == 2

    def test_an_abandoned_picture_has_no_part_in_the_next(
        self, webui: Any, tag: LoraTag, picture: Any, encoded: list[Any]
    ) -> None:
        original = weight(webui).detach().clone()
        tag.activate(picture, [words("loud")])  # and no `deactivate`, as after an error
        following = Picture()
        tag.activate(following, [])
        tag.step(self._at(3, following))
        assert torch.equal(weight(webui), original) and encoded == []
        tag.finish(picture)
        tag.step(self._at(4, picture))
        assert torch.equal(weight(webui), original) and encoded == []
