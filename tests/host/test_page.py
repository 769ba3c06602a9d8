"""The page of cards and the API, for a webui without its built-in Lora extension."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.routing import APIRoute

from lib_lora.host.builtin import BuiltinLora
from lib_lora.host.options import Settings
from lib_lora.host.page import add_api, make_page
from lib_lora.host.tag import LoraTag


class FakePage:
    """The webui's ExtraNetworksPage as far as ours uses it."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.items: dict[str, Any] = {}

    def search_terms_from_path(self, path: str) -> str:
        return "/" + Path(path).name

    def find_preview(self, stem: str) -> str | None:
        return f"preview of {Path(stem).name}" if Path(f"{stem}.preview.png").exists() else None

    def find_description(self, stem: str) -> str | None:
        return None

    def get_sort_keys(self, path: str) -> dict[str, Any]:
        return {"date_created": Path(path).stat().st_ctime}

    def read_user_metadata(self, item: dict[str, Any]) -> None:
        notes = Path(item["filename"]).with_suffix(".json")
        item["user_metadata"] = json.loads(notes.read_text()) if notes.exists() else {}


@pytest.fixture
def page(webui: Any, tag: LoraTag) -> Any:
    webui.ui_extra_networks = SimpleNamespace(ExtraNetworksPage=FakePage)
    return make_page(tag.host, tag.catalog, Settings(webui, BuiltinLora(webui)))


def test_a_click_writes_tag_strength_and_texts(page: Any, loud: Path) -> None:
    assert page.title == "Lora" and page.allowed_directories_for_previews() == [str(loud.parent)]
    (item,) = page.list_items()
    assert item["prompt"] == '"<lora:loud:" + opts.extra_networks_default_multiplier + ">"'
    assert item["negative_prompt"] == '""' and item["preview"] is None
    notes = {"activation text": 'sks "dog"\\\nx', "preferred weight": 0.6, "negative text": "ugly"}
    loud.with_suffix(".json").write_text(json.dumps(notes))
    loud.with_suffix(".preview.png").touch()
    item = page.create_item("loud")
    assert item["prompt"] == r'"<lora:loud:" + 0.6 + ">" + " sks \"dog\"\\\nx"'
    assert item["negative_prompt"] == '"(ugly:1)"' and item["preview"] == "preview of loud"
    assert page.create_item("nosuch") is None


def test_the_sites_record_beside_the_file_serves_until_the_user_writes_notes(page: Any, loud: Path) -> None:
    sidecar = loud.with_suffix(".civitai.info")
    sidecar.write_text(
        json.dumps({"trainedWords": ["sks", "a dog"], "description": "<p>A &lt;b&gt;dog&lt;/b&gt;</p>\n!"})
    )
    item = page.create_item("loud")
    assert item["prompt"].endswith('+ " sks, a dog"') and item["description"] == "A dog !"
    loud.with_suffix(".json").write_text(json.dumps({"activation text": "mine"}))
    assert page.create_item("loud")["prompt"].endswith('+ " mine"')
    loud.with_suffix(".json").unlink()
    for broken in ("{", "[]", '{"trainedWords": 3}', '{"description": 3}'):
        sidecar.write_text(broken)
        assert page.create_item("loud")["prompt"].endswith('">"')


@pytest.mark.parametrize(
    ("loaded", "version", "options", "shown"),
    [
        ("sd1", "SD1", {}, True),
        ("sd1", "SDXL", {}, False),
        ("sdxl", "SDXL", {}, True),
        ("sd1", "SDXL", {"lora_show_all": True}, True),
        ("sd2", "Unknown", {}, True),
        ("sd2", "Unknown", {"lora_hide_unknown_for_versions": ["SD2"]}, False),
        ("sd3", "SD1", {}, True),
    ],
)
def test_cards_of_other_models_are_hidden(
    webui: Any, page: Any, loud: Path, loaded: str, version: str, options: dict[str, Any], shown: bool
) -> None:
    loud.with_suffix(".json").write_text(json.dumps({"sd version": version}))
    vars(webui.shared.opts).update(options)
    model = webui.sd_models.model_data.sd_model
    model.is_sd1, model.is_sd2, model.is_sdxl = (loaded == name for name in ("sd1", "sd2", "sdxl"))
    assert bool(list(page.list_items())) == shown
    assert page.create_item("loud", enable_filter=False)["sd_version"] == version


def test_the_api_answers_as_the_built_ins_and_is_added_once(tag: LoraTag, loud: Path) -> None:
    added: list[tuple[str, Any, list[str]]] = []
    app = SimpleNamespace(routes=[], add_api_route=lambda path, f, methods, **_: added.append((path, f, methods)))
    add_api(app, tag.catalog)
    (path, loras, methods), (refresh_path, refresh, refresh_methods) = added
    assert (path, methods) == ("/sdapi/v1/loras", ["GET"])
    assert (refresh_path, refresh_methods) == ("/sdapi/v1/refresh-loras", ["POST"])
    assert loras() == [{"name": "loud", "alias": "loud", "path": str(loud), "metadata": {}}] and refresh() is None
    app.routes = [SimpleNamespace(path=path), SimpleNamespace(path=refresh_path)]
    add_api(app, tag.catalog)
    assert len(added) == 2


def test_the_api_asks_for_the_password_that_the_webuis_own_asks_for(tag: LoraTag) -> None:
    """With --api-auth; the webui hands its check to none but its own routes."""

    def refuse() -> None:
        raise HTTPException(status_code=401)

    app = FastAPI()
    app.add_api_route("/sdapi/v1/sd-models", list, methods=["GET"], dependencies=[Depends(refuse)])
    add_api(app, tag.catalog)
    answers = {r.path: r.dependencies for r in app.routes if isinstance(r, APIRoute)}
    for path in ("/sdapi/v1/loras", "/sdapi/v1/refresh-loras"):
        assert [d.dependency for d in answers[path]] == [refuse]


@pytest.mark.parametrize("weight", ["alert(1)", "1 + alert(1)", [1], {}, "nan", "inf", True])
def test_no_javascript_comes_with_a_file(page: Any, loud: Path, weight: Any) -> None:
    """Notes are often downloaded with the network, and what a click does is javascript."""
    loud.with_suffix(".json").write_text(json.dumps({"preferred weight": weight}))
    strength = "1" if weight is True else "opts.extra_networks_default_multiplier"
    assert page.create_item("loud")["prompt"] == f'"<lora:loud:" + {strength} + ">"'
