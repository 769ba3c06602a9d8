"""Settings that a kind of training cannot honour are refused with the reason, or told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora.errors import BadConfig, BadDataset
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.train.config import JobConfig, make_job
from lib_lora.train.engine import train
from lib_lora.train.fit import refuse_misfits, unused
from lib_lora.train.jobs import targets
from lib_lora.train.methods.registry import method_of
from lib_lora.train.sections import METHODS
from lib_lora.train.session import prepare

Make = Callable[..., JobConfig]
SLIDER = {"method.name": "slider", "method.slider_positive": "old"}


@pytest.mark.parametrize("name", METHODS)
def test_the_defaults_fit_every_method_and_leave_nothing_unused(name: str) -> None:
    job = make_job({"method.name": name})
    refuse_misfits(job)
    assert unused(job) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({**SLIDER, "prior.weight": 1.0}, ["prior.weight = 1", "slider"]),
        ({"method.name": "image_slider", "prior.weight": 1.0}, ["prior.weight = 1", "image_slider"]),
        ({**SLIDER, "data.masks": "alpha"}, ["data.masks = 'alpha'"]),
        ({"method.name": "lcm", "data.masks": "alpha"}, ["data.masks = 'alpha'"]),
        ({**SLIDER, "training.epochs": 2}, ["training.epochs = 2", "training.steps"]),
        ({**SLIDER, "concept": [{"trigger": "a"}]}, ["[[concept]]"]),
        ({**SLIDER, "network.train_text_encoder": True}, ["network.train_text_encoder = True"]),
        ({"method.name": "lcm", "network.train_text_encoder_2": True}, ["network.train_text_encoder_2 = True"]),
        ({"method.name": "hypernetwork", "network.train_text_encoder": True}, ["network.train_text_encoder = True"]),
        ({"method.name": "textual_inversion", "network.train_text_encoder": True}, ["network.train_text_encoder"]),
        ({"method.name": "custom_diffusion", "network.train_text_encoder": True}, ["network.train_text_encoder"]),
        ({"method.name": "lcm", "network.train_unet": False, "network.train_text_encoder_2": True}, ["train_"]),
        ({"method.name": "hypernetwork", "network.continue_from": "x"}, ["network.continue_from = 'x'"]),
        (
            {"network.train_unet": False, "network.train_text_encoder": True, "training.te_fraction": 0.5},
            ["training.te_fraction = 0.5", "network.train_unet"],
        ),
        ({"method.name": "lcm", "method.lcm_cfg_low": 9.0, "method.lcm_cfg_high": 3.0}, ["lcm_cfg_low = 9", "3"]),
        ({"training.timestep_low": 500, "training.timestep_high": 100}, ["timestep_low = 500"]),
        ({"method.name": "pivotal_tuning", "data.trigger": "<toy>", "output.name": "Toy"}, ["'toy.safetensors'"]),
        (
            {"method.name": "textual_inversion", "concept": [{"trigger": "<cat>"}, {"trigger": "cat"}]},
            ["'cat.safetensors'"],
        ),
    ],
)
def test_what_makes_no_sense_is_refused_naming_the_setting(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadConfig) as caught:
        refuse_misfits(make_job(values))
    for word in words:
        assert word in str(caught.value)


def test_a_misfit_is_refused_before_anything_is_made(make: Make, tiny_model: DiffusersModel, tmp_path: Path) -> None:
    job = make(method__name="slider", method__slider_positive="old", prior__weight=1.0, data__class_word="cat")
    with pytest.raises(BadConfig, match="prior.weight"):
        train(job, tiny_model)
    with pytest.raises(BadConfig, match="prior.weight"):
        targets(job, None)
    assert not (tmp_path / "runs").exists()


def test_only_the_second_text_encoder_may_be_trained() -> None:
    job = make_job({"network.train_unet": False, "network.train_text_encoder_2": True})
    assert job.network.train_text_encoder_2
    with pytest.raises(BadConfig, match="train_text_encoder_2"):
        make_job({"network.train_unet": False})


def test_settings_without_effect_are_told(make: Make, tiny_model: DiffusersModel) -> None:
    job = make(method__name="hypernetwork", optimizer__lora_plus=16.0, network__dora=True, training__steps=1)
    assert "network.dora" in unused(job)[0] and "optimizer.lora_plus" in unused(job)[0]
    events: list[dict[str, Any]] = []
    train(job, tiny_model, on_event=events.append)
    assert unused(job)[0] in [event.get("message") for event in events]


def test_a_word_that_no_caption_says_is_refused_before_the_first_step(
    make: Make, tiny_model: DiffusersModel, tmp_path: Path
) -> None:
    folder = tmp_path / "said"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    (folder / "a.txt").write_text("a red thing", encoding="utf-8")
    for name in ("textual_inversion", "pivotal_tuning"):
        values = {"method__name": name, "data__folder": str(folder), "data__trigger": "<cat>", "training__steps": 1}
        with pytest.raises(BadDataset, match=r"no caption says '<cat>'.*data.prepend_trigger"):
            train(make(**values), tiny_model)
        train(make(**values, data__prepend_trigger=True, data__resolution=128), tiny_model)


def test_concepts_take_the_word_of_data_where_they_name_none() -> None:
    from lib_lora.train.tokens import words_of

    job = make_job({"method.name": "textual_inversion", "data.trigger": "<cat>", "concept": [{"folder": "x"}]})
    assert words_of(job) == ["<cat>"]


def test_a_broken_after_picture_is_told_before_the_first_step(
    make: Make, tiny_model: DiffusersModel, pictures: Path, tmp_path: Path
) -> None:
    after = tmp_path / "after"
    after.mkdir()
    for name in ("one", "two"):
        Image.effect_noise((96, 64), 90).convert("RGB").save(after / f"{name}.png")
    whole = (after / "two.png").read_bytes()
    (after / "two.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadDataset, match=r"two.png"):
        method_of("image_slider").dataset(make(method__name="image_slider", method__pairs_after=str(after)))


def test_a_base_whose_file_is_gone_is_told_before_the_first_step(
    make: Make, tiny_model: DiffusersModel, tmp_path: Path
) -> None:
    """As the webui's loaded checkpoint, deleted or renamed since; its modules alone make no checkpoint."""

    class Elsewhere:
        source = tmp_path / "gone.safetensors"

        def __getattr__(self, name: str) -> Any:
            if name in ("unet", "vae"):
                raise AttributeError(name)
            return getattr(tiny_model, name)

    model: Any = Elsewhere()
    job = make(method__name="dreambooth")
    with pytest.raises(BadConfig, match="is not known any more"):
        method_of("dreambooth").learners(job, model)
    assert method_of("dreambooth").learners(
        make(method__name="dreambooth", method__as_lora=4, method__save_checkpoint=False), model
    )


def test_a_word_beyond_what_is_read_of_its_captions_is_refused(
    make: Make, tiny_model: DiffusersModel, tmp_path: Path
) -> None:
    """75 vectors behind two words do not fit in the 75 that are read: the run would learn nothing."""
    common = {"method__name": "textual_inversion", "data__trigger": "<cat>", "method__tokens": 75}
    with pytest.raises(BadConfig, match=r"'<cat>'.*method.tokens \(now 75\)"):
        prepare(make(**common), tiny_model, tmp_path)
    prepare(make(**common, training__max_tokens=150), tiny_model, tmp_path)


@pytest.mark.parametrize("name", ["textual_inversion", "pivotal_tuning"])
def test_the_older_embedding_file_has_no_form_for_sdxl(
    make: Make, tiny_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(tiny_model, "version", "sdxl")
    with pytest.raises(BadConfig, match="no form for SDXL"):
        method_of(name).learners(make(method__name=name, method__embedding_format="pt"), tiny_model)
