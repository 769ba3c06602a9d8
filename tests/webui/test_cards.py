"""Cards of the Lora page, the built-in's and ours: Civitai's records, the editor, previews, the version filter."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

pytestmark = pytest.mark.webui
PREVIEWS = ("preview.png", "png", "jpg", "jpeg", "webp", "preview.webp")
RECORD = {
    "trainedWords": ["sks", "a dog,"],
    "description": "<p>A dog&#39;s portrait</p>",
    "baseModel": "SD 1.5",
    "model": {"name": "Dog"},
}
FIELDS = ("description", "sd version", "activation text", "preferred weight", "negative text", "notes")
EDITOR = "txt2img_lora_edit_user_metadata"


@pytest.fixture(scope="module", params=["built-in", "ours"])
def server(start: Any, setup_class: Any, request: Any) -> Iterator[Any]:
    """The extension beside the built-in, and alone, with a copy of `loud` for each case."""
    with start(setup_class(off=["Lora"] if request.param == "ours" else [])) as running:
        folder = running.networks
        for name in ("known", "edited", *(ending.replace(".", " ") for ending in PREVIEWS)):
            shutil.copy(folder / "loud.safetensors", folder / f"{name}.safetensors")
        for name in ("known", "edited"):
            (folder / f"{name}.civitai.info").write_text(json.dumps(RECORD), encoding="utf-8")
        for ending in PREVIEWS:
            Image.new("RGB", (32, 48), "green").save(folder / f"{ending.replace('.', ' ')}.{ending}")
        yield running


def cards(server: Any) -> dict[str, str]:
    """The html of each card by its name, built anew."""
    text = server.get("/probe/cards")["html"]
    found = re.split(r"(?=<div class=[\"']card[\"' ])", text)[1:]
    names = (re.search(r'data-name="([^"]*)"', card) for card in found)
    return {html.unescape(name[1]): html.unescape(card) for name, card in zip(names, found) if name}


def test_a_record_gives_trigger_words_and_description(server: Any) -> None:
    shown = cards(server)
    assert not any("civitai" in name for name in shown)
    assert '+ ">" + " sks, a dog"' in shown["known"] and "A dog's portrait" in shown["known"]
    assert "sks" not in shown["loud"]
    assert {entry["name"] for entry in server.get("/sdapi/v1/loras")} == set(shown)


def test_the_editor_begins_with_the_record_and_saves_beside_it(server: Any) -> None:
    record = server.networks / "edited.civitai.info"
    before = record.read_bytes(), record.stat().st_mtime_ns
    cards(server)
    fields = _Editor(server)
    shown = fields.open("edited")
    assert "A dog's portrait" in shown and "sks, a dog" in shown
    entered = dict(zip(FIELDS, ("A dog's portrait", "SD1", "sks, a dog, mine", 0.7, "ugly", "some notes")))
    fields.save("edited", entered)
    notes = json.loads((server.networks / "edited.json").read_text(encoding="utf-8"))
    assert notes == {name: entered[name] for name in fields.names}
    assert (record.read_bytes(), record.stat().st_mtime_ns) == before
    assert '0.7 + ">" + " sks, a dog, mine"' in cards(server)["edited"]
    single = server.get("/sd_extra_networks/get-single-card?page=lora&tabname=txt2img&name=edited")
    assert "sks, a dog, mine" in html.unescape(single["html"])
    fields.open("edited")
    fields.save("edited", dict(zip(FIELDS, ("", "SD1", "", 0, "", ""))))
    cleared = cards(server)["edited"]
    assert "sks" not in cleared and "portrait" not in cleared, "what the user cleared stays cleared"


class _Editor:
    """The page's own events behind the editor of a card: what its button and its Save send."""

    def __init__(self, server: Any) -> None:
        self.server = server
        config = server.get("/config")
        name = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == f"{EDITOR}_name")
        events = [(number, d) for number, d in enumerate(config["dependencies"]) if d["inputs"][:1] == [name]]
        backend = [(number, d) for number, d in events if d["backend_fn"]]
        (self._open,) = [number for number, d in backend if len(d["inputs"]) == 1 and len(d["outputs"]) >= 9]
        ((self._save, inputs),) = [(n, d["inputs"]) for n, d in backend if len(d["inputs"]) >= 6 and not d["outputs"]]
        # The built-in's before 1.8 has no negative text.
        self.names = FIELDS if len(inputs) == 7 else tuple(name for name in FIELDS if name != "negative text")

    def open(self, name: str) -> list[Any]:
        return self._send(self._open, name)

    def save(self, name: str, entered: dict[str, Any]) -> None:
        self._send(self._save, name, *(entered[field] for field in self.names))

    def _send(self, number: int, *values: Any) -> Any:
        body = {"fn_index": number, "data": list(values), "session_hash": "test"}
        return self.server.post("/run/predict", body)["data"]


@pytest.mark.parametrize("ending", PREVIEWS)
def test_a_picture_beside_the_file_is_on_its_card(server: Any, ending: str) -> None:
    card = cards(server)[ending.replace(".", " ")]
    found = re.search(r'<img src="\.(/sd_extra_networks/thumb\?[^"]*)"', card)
    assert found is not None, card
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{found[1]}") as answer:
        assert Image.open(io.BytesIO(answer.read())).size == (32, 48)


def test_networks_for_other_models_are_hidden(server: Any) -> None:
    """Told by the metadata that kohya writes: all that the built-in looks at. The loaded model is an SD1."""
    made = {"of xl": {"ss_base_model_version": "sdxl_base_v1-0"}, "of sd2": {"ss_v2": "True"}}
    for name, width in (("of xl", 2048), ("of sd2", 1024)):
        _write(server.networks / f"{name}.safetensors", width, made[name])
    assert not {"of xl", "of sd2"} & set(cards(server)) and "loud" in cards(server)
    assert {"of xl", "of sd2"} <= {entry["name"] for entry in server.get("/sdapi/v1/loras")}
    server.options(lora_show_all=True)
    try:
        assert {"of xl", "of sd2", "loud"} <= set(cards(server))
    finally:
        server.options(lora_show_all=False)
    notes = server.networks / "of xl.json"
    notes.write_text(json.dumps({"sd version": "SD1"}), encoding="utf-8")  # the user knows better
    assert "of xl" in cards(server) and "of sd2" not in cards(server)


def _write(path: Path, width: int, metadata: dict[str, str]) -> None:
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{stem}.lora_down.weight": torch.ones(4, width), f"{stem}.lora_up.weight": torch.ones(640, 4)}
    save_file(tensors, str(path), metadata)


def test_the_log_tells_of_no_exception(server: Any) -> None:
    assert server.faults() == []
