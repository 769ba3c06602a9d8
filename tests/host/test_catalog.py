"""Network files as cards, names and hashes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lib_lora.files.library import NetworkLibrary
from lib_lora.host.builtin import BuiltinLora
from lib_lora.host.catalog import Catalog


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """loud.safetensors, sub/loud.safetensors (another content), cat.safetensors with metadata, and a broken file."""
    layer = {"lora_unet_conv_in.lora_down.weight": torch.ones(2, 4, 3, 3)}
    layer["lora_unet_conv_in.lora_up.weight"] = torch.ones(8, 2, 1, 1)
    (tmp_path / "Lora" / "sub").mkdir(parents=True)
    save_file(layer, tmp_path / "Lora" / "loud.safetensors")
    save_file({name: tensor * 2 for name, tensor in layer.items()}, tmp_path / "Lora" / "sub" / "loud.safetensors")
    metadata = {"ss_output_name": "kitty", "ss_tag_frequency": '{"a": {"b": 1}}', "aaa": "{broken", "ss_v2": "False"}
    save_file({name: tensor * 3 for name, tensor in layer.items()}, tmp_path / "Lora" / "cat.safetensors", metadata)
    (tmp_path / "Lora" / "broken.safetensors").write_bytes(b"\xff" * 40)
    return tmp_path / "Lora"


@pytest.fixture
def catalog(webui: Any, folder: Path) -> Catalog:
    return Catalog(webui, BuiltinLora(webui), NetworkLibrary([folder]))


def test_a_card_has_the_name_that_a_tag_needs(catalog: Catalog) -> None:
    assert [card.name for card in catalog.cards()] == ["broken", "cat", "loud", "sub/loud"]
    for card in catalog.cards():
        assert catalog.library.find(card.name).path == card.path
    assert catalog.card("sub/loud") is not None and catalog.card("nosuch") is None


def test_metadata_are_objects_with_the_useful_ones_first(catalog: Catalog) -> None:
    card = catalog.card("cat")
    assert card is not None and card.alias == "kitty" and card.version == "SD1"
    assert next(iter(card.metadata)) == "ss_tag_frequency" and card.metadata["ss_tag_frequency"] == {"a": {"b": 1}}
    assert card.metadata["aaa"] == "{broken"
    answer = card.as_json()
    assert answer["path"].endswith("cat.safetensors") and set(answer) == {"name", "alias", "path", "metadata"}


def test_a_broken_file_has_a_card_too(catalog: Catalog) -> None:
    card = catalog.card("broken")
    assert card is not None and card.version == "Unknown" and card.metadata == {}
    assert catalog.short_hash("broken") == ""


def test_the_preferred_name_is_the_alias_unless_it_means_something_else(
    webui: Any, catalog: Catalog, folder: Path
) -> None:
    card = catalog.card("cat")
    assert card is not None and catalog.preferred_name(card) == "kitty"
    webui.shared.opts.lora_preferred_name = "Filename"
    assert catalog.preferred_name(card) == "cat"
    webui.shared.opts.lora_preferred_name = "Alias from file"
    (folder / "kitty.safetensors").write_bytes((folder / "loud.safetensors").read_bytes())
    assert catalog.preferred_name(card) == "cat"


def test_hashes_lead_back_to_the_file_that_is_meant(webui: Any, catalog: Catalog, folder: Path) -> None:
    first, second = catalog.short_hash("loud"), catalog.short_hash("sub/loud")
    assert len(first) == len(second) == 12 and first != second
    assert catalog.name_of(first, "loud") == "loud"
    assert catalog.name_of(second, "loud") == "sub/loud", "the file that has this name here is another one"
    assert catalog.name_of(first, "renamed") == "loud"
    assert catalog.name_of(catalog.short_hash("cat"), "kitty") == "kitty", "an alias that means the file here, too"
    assert catalog.name_of("0" * 12, "loud") is None
    (folder / "copy.safetensors").write_bytes((folder / "sub" / "loud.safetensors").read_bytes())
    catalog.short_hash("copy")
    assert catalog.name_of(second, "somewhere/loud") == "sub/loud", "of two with this hash the one called alike"
    assert catalog.name_of(second, "copy") == "copy"


def test_a_computed_hash_is_kept_where_the_webui_looks_for_it_too(webui: Any, catalog: Catalog, folder: Path) -> None:
    """The webui 1.10 opens an empty table of hashes anew for each file of its list: a millisecond each."""
    table = webui.cache.cache("hashes-addnet")
    (folder / "cat.safetensors").rename(folder / "sub" / "cat.safetensors")
    catalog.rescan()
    for name in ("cat", "loud", "sub/loud", "cat"):
        catalog.short_hash(name)
    digest = hashlib.sha256(_data(folder / "sub" / "cat.safetensors")).hexdigest()
    assert table == {"lora/cat": {"mtime": os.path.getmtime(folder / "sub" / "cat.safetensors"), "sha256": digest}}, (
        "of two files that are called loud the webui's table can hold but one"
    )
    webui.shared.cmd_opts.no_hashing = True
    (folder / "late.safetensors").write_bytes((folder / "sub" / "cat.safetensors").read_bytes())
    catalog.rescan()
    assert catalog.short_hash("late") == "" and "lora/late" not in table


def _data(path: Path) -> bytes:
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_without_hashing_no_file_is_read(webui: Any, catalog: Catalog) -> None:
    webui.shared.cmd_opts.no_hashing = True
    assert catalog.short_hash("loud") == ""


def test_rescan_tells_the_built_in(webui: Any, builtin: Any, folder: Path) -> None:
    Catalog(webui, BuiltinLora(webui), NetworkLibrary([folder])).rescan()
    assert builtin.scans == 1


def test_a_file_that_vanished_costs_nothing(catalog: Catalog, webui: Any) -> None:
    def gone(*_: Any) -> Any:
        raise FileNotFoundError

    webui.cache = SimpleNamespace(cached_data_for_file=gone)
    assert [card.metadata for card in catalog.cards()] == [{}] * 4
