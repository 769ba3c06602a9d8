"""The Train page against a service that trains nothing: what it reads, shows and refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora.errors import BadConfig
from lib_lora.train.presets import PRESETS, preset_job
from lib_lora.ui import html, train_tab
from lib_lora.ui.fields import entered, shown
from lib_lora.ui.service import TrainStatus


class FakeService:
    """Notes what it was asked."""

    def __init__(self) -> None:
        self.now = TrainStatus()
        self.started: list[Mapping[str, Any]] = []
        self.cancelled = 0

    def start(self, settings: Mapping[str, Any]) -> str:
        if self.started:
            raise BadConfig("'<b>x</b>' is being trained; wait for it or cancel it")
        self.started.append(settings)
        return "Training."

    def cancel(self) -> str:
        self.cancelled += 1
        return "Stopping."

    def status(self) -> TrainStatus:
        return self.now

    def presets(self) -> tuple[str, ...]:
        return tuple(PRESETS)

    def preset_values(self, name: str) -> Mapping[str, Any]:
        sections = preset_job(name).values()
        return {f"{section}.{key}": value for section, table in sections.items() for key, value in table.items()}

    def base_name(self) -> str:
        return "a <model>"


@pytest.fixture
def service() -> FakeService:
    return FakeService()


def form(service: FakeService, preset: str = "subject", **changed: Any) -> list[Any]:
    """The form as the browser sends it, untouched but for `changed` ("section__name")."""
    values = service.preset_values(preset)
    chosen = {key.replace("__", "."): value for key, value in changed.items()}
    advanced = [chosen.get(key, shown(key, values[key])) for key in train_tab.ADVANCED]
    return ["'/pictures/rex' ", "sks", "dog", "rex", preset, *advanced]


def component_ids(blocks: Any) -> set[str]:
    return {str(block.elem_id) for block in blocks.blocks.values() if getattr(block, "elem_id", None)}


def test_page_builds_with_every_part_and_named_endpoints(service: FakeService) -> None:
    blocks = train_tab.build(service)
    assert {"lorakit_folder", "lorakit_start", "lorakit_stop", "lorakit_refresh", "lorakit_tag"} <= component_ids(
        blocks
    )
    config = json.dumps(blocks.get_config_file(), default=str)
    assert all(name in config for name in ("lorakit_train", "lorakit_status", "lorakit_cancel"))
    assert "a &lt;model&gt;" in config and "a <model>" not in config


@pytest.mark.parametrize("preset", list(PRESETS))
def test_untouched_form_is_exactly_the_preset(service: FakeService, preset: str) -> None:
    settings = dict(train_tab.settings_of_form(form(service, preset)))
    assert settings.pop("preset") == preset
    job = preset_job(preset, settings)
    expected = preset_job(
        preset,
        {"data.folder": "/pictures/rex", "data.trigger": "sks", "data.class_word": "dog", "output.name": "rex"},
    )
    assert job == expected


def test_start_passes_what_was_changed(service: FakeService) -> None:
    told, _ = train_tab.Page(service).start(*form(service, optimizer__lr="3e-4", training__steps=7.0))
    assert "Training." in told and "lk-bad" not in told
    assert service.started[0]["optimizer.lr"] == 3e-4
    assert service.started[0]["training.steps"] == 7


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"optimizer__lr": "fast"}, "optimizer.lr"),
        ({"training__steps": 1.5}, "training.steps"),
        ({"training__steps": None}, "training.steps"),
        ({"training__steps": "ten"}, "training.steps"),
        ({"training__steps": [10]}, "training.steps"),
        ({"training__steps": float("nan")}, "training.steps"),
        ({"network__rank": 0}, "network.rank"),
        ({"data__resolution": 100}, "data.resolution"),
    ],
)
def test_bad_value_is_told_by_name_and_starts_nothing(
    service: FakeService, changed: dict[str, Any], named: str
) -> None:
    told, _ = train_tab.Page(service).start(*form(service, **changed))
    assert "lk-bad" in told and named in told
    assert service.started == []


def test_refusal_is_shown_escaped(service: FakeService) -> None:
    page = train_tab.Page(service)
    page.start(*form(service))
    told, _ = page.start(*form(service))
    assert "lk-bad" in told and "&lt;b&gt;x" in told and "<b>x" not in told


def test_refresh_sends_pictures_once_and_the_prompt_at_the_end(service: FakeService, tmp_path: Path) -> None:
    page = train_tab.Page(service)
    path = tmp_path / "000050-0.png"
    Image.new("RGB", (8, 8), (255, 0, 0)).save(path)
    service.now = TrainStatus("running", "rex", 50, 100, 0.25, 65.0, samples=(path, tmp_path / "gone.png"))
    base, shown_html, gallery, prompt, seen = page.refresh("")
    assert "a &lt;model&gt;" in base
    assert "step 50 of 100" in shown_html and "1 min 05 s left" in shown_html and "width:50.0%" in shown_html
    [(picture, caption)] = gallery["value"]
    assert picture.getpixel((0, 0)) == (255, 0, 0) and caption == "step 50"
    assert prompt == ""
    _, _, again, _, seen_again = page.refresh(seen)
    assert "value" not in again and seen_again == seen
    service.now = TrainStatus("finished", "rex", 100, 100, 0.2, tag="<lora:rex:1>", words="sks dog")
    _, _, _, prompt, _ = page.refresh(seen)
    assert prompt == "sks dog <lora:rex:1>"


def test_cancel_reaches_the_service(service: FakeService) -> None:
    told, _ = train_tab.Page(service).cancel()
    assert service.cancelled == 1 and "Stopping." in told


def test_api(service: FakeService) -> None:
    page = train_tab.Page(service)
    assert page.api_train('{"data.folder": "/x"}') == {"ok": True, "message": "Training."}
    assert service.started == [{"data.folder": "/x"}]
    assert page.api_train("{}")["ok"] is False
    for text in ("[1]", "5", "null", "{", "[" * 100_000, None, {"data.folder": "/x"}):
        assert "no JSON object" in page.api_train(text)["message"]  # type: ignore[arg-type]
    service.now = TrainStatus("finished", "rex", result=Path("rex.safetensors"), samples=(Path("a.png"),))
    answer = json.loads(json.dumps(page.api_status()))
    assert answer["result"] == "rex.safetensors" and answer["samples"] == ["a.png"] and answer["state"] == "finished"


@pytest.mark.parametrize("state", list(html.WORDS))
def test_progress_escapes_names_and_messages(state: str) -> None:
    text = html.progress(TrainStatus(state, "<i>n</i>", 1, 2, message="a < b\n<script>", losses=(1.0, 0.5)))
    assert "<i>" not in text and "<script>" not in text and "&lt;i&gt;" in text and "<polyline" in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, ""), (0, "0 s"), (59.6, "1 min 00 s"), (65, "1 min 05 s"), (3720, "1 h 02 min")]
)
def test_time_words(seconds: float | None, words: str) -> None:
    assert html.time_words(seconds) == words


def test_entered_is_the_inverse_of_shown() -> None:
    values = preset_job("subject").values()
    for key in train_tab.ADVANCED:
        section, name = key.split(".")
        assert entered(key, shown(key, values[section][name])) == values[section][name]
