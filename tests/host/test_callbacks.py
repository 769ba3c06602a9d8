"""Who owns the tag when, and what is registered with the webui."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_lora.host import callbacks
from lib_lora.host.builtin import Idle
from lib_lora.host.callbacks import Lorakit
from tests.host.fakes import Picture, weight

FORWARD = torch.nn.Linear.forward


@pytest.fixture
def kit(webui: Any, loud: Path) -> Any:
    pages: list[Any] = []
    webui.ui_extra_networks = SimpleNamespace(
        ExtraNetworksPage=lambda title: None, register_page=pages.append, extra_pages=pages
    )
    webui.ui_extra_networks.ExtraNetworksPage = type("Page", (), {"__init__": lambda self, title: None})
    made = Lorakit(webui)
    yield made
    made.unload()


def _owner(webui: Any) -> Any:
    return webui.extra_networks.extra_network_registry.get("lora")


def _apply(kit: Any, picture: Any) -> None:
    kit.tag.activate(picture, [SimpleNamespace(items=["loud"])])


def test_the_setting_moves_the_tag_there_and_back(webui: Any, builtin: Any, kit: Any, picture: Any) -> None:
    original = weight(webui).detach().clone()
    kit.settle()
    assert _owner(webui) is kit.tag and torch.nn.Linear.forward is FORWARD
    _apply(kit, picture)
    webui.shared.opts.lorakit_apply = False
    kit.settle()
    assert _owner(webui) is builtin.extra_network_lora and torch.equal(weight(webui), original)
    assert torch.nn.Linear.forward is not FORWARD and not isinstance(builtin.network_apply_weights, Idle)
    webui.shared.opts.lorakit_apply = True
    kit.settle()
    assert _owner(webui) is kit.tag and torch.nn.Linear.forward is FORWARD


def test_text_states_of_one_owner_are_not_used_by_the_next(webui: Any, builtin: Any, kit: Any, picture: Any) -> None:
    kit.settle()
    _apply(kit, picture)
    webui.shared.opts.lorakit_apply = False
    kit.settle()
    webui.shared.opts.lorakit_apply = True
    kit.settle()
    picture.cached_c[0] = "the built-in's"
    _apply(kit, picture)
    assert picture.cached_c[0] is None


def test_texts_are_encoded_anew_when_training_made_a_file(webui: Any, builtin: Any, kit: Any, picture: Any) -> None:
    """It may have been the embedding of a word that the last prompt has."""
    kit.settle()
    _apply(kit, picture)
    picture.cached_c[0] = "the old word's"
    kit.new_files()
    _apply(kit, picture)
    assert picture.cached_c[0] is None


def test_a_model_nobody_of_us_knows_belongs_to_the_built_in(webui: Any, builtin: Any, kit: Any) -> None:
    kit.settle()
    del webui.shared.sd_model.model.diffusion_model.input_blocks
    kit.host.model_loaded(webui.shared.sd_model)
    kit.settle()
    assert _owner(webui) is builtin.extra_network_lora
    webui.sd_models.model_data.sd_model = None  # not loaded yet: nothing is loaded for a look at it
    kit.settle()
    assert _owner(webui) is kit.tag


def test_switched_off_without_the_built_in_nobody_owns_it(webui: Any, kit: Any, picture: Any) -> None:
    original = weight(webui).detach().clone()
    kit.settle()
    _apply(kit, picture)
    webui.shared.opts.lorakit_apply = False
    kit.settle()
    assert _owner(webui) is None and torch.equal(weight(webui), original)


def test_switched_off_while_a_third_extension_owns_the_tag(webui: Any, builtin: Any, kit: Any, picture: Any) -> None:
    """It may build on the built-in's: then that must work, and nothing of ours may stay in the model."""
    original = weight(webui).detach().clone()
    kit.settle()
    _apply(kit, picture)
    third = SimpleNamespace(name="lora")
    webui.extra_networks.register_extra_network(third)
    webui.shared.opts.lorakit_apply = False
    kit.settle()
    assert _owner(webui) is third and torch.equal(weight(webui), original)
    assert not isinstance(builtin.network_apply_weights, Idle) and torch.nn.Linear.forward is not FORWARD


def test_a_third_extensions_tag_stays_and_nothing_of_ours_does(webui: Any, kit: Any, picture: Any) -> None:
    original = weight(webui).detach().clone()
    kit.settle()
    _apply(kit, picture)
    third = SimpleNamespace(name="lora")
    webui.extra_networks.register_extra_network(third)
    kit.settle()
    assert _owner(webui) is third and torch.equal(weight(webui), original)


def test_page_and_api_are_ours_only_without_the_built_in(webui: Any, kit: Any) -> None:
    routes: list[str] = []
    app = SimpleNamespace(routes=[], add_api_route=lambda path, *_, **__: routes.append(path))
    kit.before_ui()
    kit.started(None, app)
    assert len(webui.ui_extra_networks.extra_pages) == 1 and len(routes) == 2
    assert {"lorakit_apply", "sd_lora"} <= set(webui.shared.opts.data_labels)
    webui.extensions.active = lambda: [SimpleNamespace(name="Lora", is_builtin=True)]
    read = lambda item: None  # noqa: E731
    theirs = SimpleNamespace(name="lora", read_user_metadata=read)
    webui.ui_extra_networks.extra_pages[:] = [theirs]
    kit.before_ui()
    kit.started(None, app)
    assert webui.ui_extra_networks.extra_pages == [theirs] and len(routes) == 2
    assert theirs.read_user_metadata is not read, "Civitai's records are not read"


def test_unload_leaves_the_model_and_the_built_in_clean(webui: Any, builtin: Any, kit: Any, picture: Any) -> None:
    original = weight(webui).detach().clone()
    kit.settle()
    _apply(kit, picture)
    assert builtin.loaded_networks
    kit.unload()
    assert torch.equal(weight(webui), original) and builtin.loaded_networks == []
    assert not isinstance(builtin.network_apply_weights, Idle)


def test_pasting_names_the_files_as_they_are_called_here(kit: Any, loud: Path) -> None:
    digest = kit.catalog.short_hash("loud")
    fields = {"Prompt": "", "Negative prompt": "<lora:other:1>", "Lora hashes": f"other: {digest}"}
    kit.pasted("", fields)
    assert fields["Negative prompt"] == "<lora:loud:1>"


def test_elsewhere_nothing_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "detect", lambda: None)
    assert callbacks.register() is None


def test_the_script_settles_before_every_picture_and_batch(
    webui: Any, builtin: Any, monkeypatch: pytest.MonkeyPatch, loud: Path
) -> None:
    registered: dict[str, Any] = {}
    names = ("before_ui", "app_started", "model_loaded", "cfg_denoiser", "infotext_pasted", "script_unloaded")
    names += ("ui_tabs",)
    webui.script_callbacks = SimpleNamespace(
        **{f"on_{name}": lambda call, name=name: registered.__setitem__(name, call) for name in names}
    )
    webui.scripts.Script, webui.scripts.AlwaysVisible = object, object()
    monkeypatch.setattr(callbacks, "detect", lambda: callbacks.WEBUI)
    monkeypatch.setattr(callbacks, "Webui", lambda: webui)
    made = callbacks.register()
    assert made is not None and set(registered) == set(names)
    script = made()
    assert script.show(False) is webui.scripts.AlwaysVisible
    script.process(None)
    ours = _owner(webui)
    assert ours.is_lorakit
    webui.extra_networks.register_extra_network(builtin.extra_network_lora)  # by another extension's `process`
    script.before_process_batch(None)
    assert _owner(webui) is ours
    registered["script_unloaded"]()


def test_a_picture_that_wants_no_extra_networks_has_none(webui: Any, kit: Any, picture: Any) -> None:
    """The webui activates nothing for it: what the picture before had would stay."""
    original = weight(webui).detach().clone()
    script = callbacks._script_class(kit)()
    _apply(kit, picture)
    script.postprocess(picture, None)
    following = Picture()
    following.disable_extra_networks = True
    following.cached_c[0] = "with the network"
    script.process(following)
    assert torch.equal(weight(webui), original) and following.cached_c[0] is None


def test_one_inside_another_keeps_what_is_applied(webui: Any, kit: Any, picture: Any) -> None:
    """Extensions draw so what is to look like the picture round it."""
    original = weight(webui).detach().clone()
    script = callbacks._script_class(kit)()
    _apply(kit, picture)
    inner = Picture()
    inner.disable_extra_networks = True
    script.process(inner)
    assert torch.allclose(weight(webui), original + 2)


def test_after_unloading_a_picture_on_its_way_does_not_take_the_tag_back(
    webui: Any, builtin: Any, kit: Any, picture: Any
) -> None:
    script = callbacks._script_class(kit)()
    kit.settle()
    kit.unload()
    webui.extra_networks.register_extra_network(builtin.extra_network_lora)
    script.process(picture)
    script.before_process_batch(picture)
    assert _owner(webui) is builtin.extra_network_lora
