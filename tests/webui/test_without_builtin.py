"""A webui whose built-in Lora extension is disabled: tag, cards, API, settings and command line are ours."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

pytestmark = pytest.mark.webui
PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def alone(start: Any, builtin: Any, setup_class: Any) -> Iterator[Any]:
    with start(setup_class(off=["Lora"], arguments=["--hide-ui-dir-config"])) as server:
        folder = server.networks / "sub dir"
        folder.mkdir()
        shutil.copy(server.networks / "loud.safetensors", folder / "loud.safetensors")
        notes = {"activation text": 'sks "dog"', "preferred weight": 0.6, "negative text": "ugly"}
        (folder / "loud.json").write_text(json.dumps(notes), encoding="utf-8")
        yield server


@pytest.mark.parametrize("name", ["loud", "sub dir/loud", "LOUD"])
def test_the_tag_works(alone: Any, builtin: Any, name: str) -> None:
    tagged, text = alone.picture(f"{PROMPT} <lora:{name}:1>")
    assert numpy.abs(tagged - builtin.tagged).max() <= 1 and f"LoRA layers: {name} 264 of 264" in text
    assert f'Lora hashes: "{name}: ' in text
    plain, _ = alone.picture(PROMPT)
    assert numpy.array_equal(plain, builtin.plain)


def test_there_is_one_page_of_cards_and_a_click_writes_the_tag(alone: Any) -> None:
    assert [page for page in alone.probe()["pages"] if page.endswith("Lora")] == ["LoraPage: Lora"]
    text = alone.get("/probe/cards")["html"]
    assert 'data-name="loud"' in text and 'data-name="sub dir/loud"' in text
    click = html.unescape(text)
    assert r'"<lora:sub dir/loud:" + 0.6 + ">" + " sks \"dog\""' in click
    assert '"<lora:loud:" + opts.extra_networks_default_multiplier + ">"' in click


def test_the_api_answers_as_the_built_ins(alone: Any) -> None:
    entries = alone.get("/sdapi/v1/loras")
    assert [entry["name"] for entry in entries] == ["loud", "sub dir/loud"]
    assert all(set(entry) == {"name", "alias", "path", "metadata"} for entry in entries)
    assert alone.post("/sdapi/v1/refresh-loras", {}) is None


def test_its_settings_are_there_and_obeyed(alone: Any, builtin: Any) -> None:
    options = alone.get("/sdapi/v1/options")
    assert options["sd_lora"] == "None" and options["lora_in_memory_limit"] == 0
    alone.options(sd_lora="sub dir/loud")
    try:
        tagged, _ = alone.picture(PROMPT)
    finally:
        alone.options(sd_lora="None")
    assert numpy.abs(tagged - builtin.tagged).max() <= 1


def test_switched_off_nothing_is_applied(alone: Any, builtin: Any) -> None:
    alone.options(lorakit_apply=False)
    try:
        picture, _ = alone.picture(f"{PROMPT} <lora:loud:1>")
    finally:
        alone.options(lorakit_apply=True)
    assert numpy.array_equal(picture, builtin.plain)


def test_comments_do_not_tell_where_folders_lie(alone: Any, builtin: Any) -> None:
    """As others may read them: --hide-ui-dir-config says so, as --listen would."""
    broken = alone.networks / "sub dir" / "broken.safetensors"
    broken.write_bytes(b"no network")
    try:
        picture, _ = alone.picture(f"{PROMPT} <lora:nosuch:1> <lora:broken:1>")
    finally:
        broken.unlink()
    told = "\n".join(alone.probe()["comments"])
    assert "files in Lora;" in told and "sub dir/broken.safetensors is not" in told
    assert str(alone.data) not in told and numpy.array_equal(picture, builtin.plain)


def test_after_a_reload_all_is_there_once(alone: Any, builtin: Any) -> None:
    alone.reload()
    assert [page for page in alone.probe()["pages"] if page.endswith("Lora")] == ["LoraPage: Lora"]
    assert len(alone.get("/sdapi/v1/loras")) == 2
    tagged, _ = alone.picture(f"{PROMPT} <lora:loud:1>")
    assert numpy.abs(tagged - builtin.tagged).max() <= 1 and alone.faults() == []
