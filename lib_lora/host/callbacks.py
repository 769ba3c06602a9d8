"""Registers everything with the webui: the tag, the Train tab, cards, API, settings, plot axes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

from lib_lora.errors import WrongBaseModel
from lib_lora.files.background import Background
from lib_lora.files.library import NetworkLibrary
from lib_lora.host import axes, civitai, infotext, page
from lib_lora.host.builtin import BuiltinLora
from lib_lora.host.catalog import Catalog
from lib_lora.host.detect import FORGE, WEBUI, Webui, detect
from lib_lora.host.neighbours import FOLDER
from lib_lora.host.tag import LoraTag
from lib_lora.host.webui import WebuiHost
from lib_lora.patch.patcher import Patcher
from lib_lora.runtime import Runtime

if TYPE_CHECKING:
    from lib_lora.ui.local_trainer import LocalTrainer

log = logging.getLogger(__name__)


class Kit(Protocol):
    """What the Train tab and training by HTTP are made from."""

    webui: Webui

    @property
    def trainer(self) -> LocalTrainer:
        """Who trains."""


class Lorakit:
    """Our objects for one loading of the webui's scripts; a UI reload makes new ones after `unload` of these."""

    def __init__(self, webui: Webui) -> None:
        self.webui = webui
        self.builtin = BuiltinLora(webui)
        self.host = WebuiHost(webui, self.builtin)
        cache = self.host.data_folder() / FOLDER / "networks.json"
        self.library = NetworkLibrary(self.host.network_folders(), cache)
        self.background = Background(self.library)
        self.catalog = Catalog(webui, self.builtin, self.library)
        self.tag = LoraTag(self.host, Runtime(self.library, Patcher()), self.catalog)
        self.settings = self.tag.settings
        self.host.restore = self.tag.restore
        self._trainer: LocalTrainer | None = None

    @property
    def trainer(self) -> LocalTrainer:
        """Who trains; made when first asked for, as the webui's folders are known by then."""
        if self._trainer is None:
            from lib_lora.host.place import WebuiPlace
            from lib_lora.ui.local_trainer import LocalTrainer

            place = WebuiPlace(self.host, self.library, self.new_files, self.tag.neighbours.presets)
            self._trainer = LocalTrainer(place)
        return self._trainer

    def settle(self) -> None:
        """Own the tag if the settings say so and the loaded model is one we know; else the built-in owns it."""
        if self.tag.closed:  # a picture is still on its way
            return
        registry = self.webui.extra_networks.extra_network_registry
        before = registry.get(self.tag.name)
        if (self.settings.apply or self.tag.neighbours.needs_builtin()) and self._knows_model():
            if self.builtin.take(self.tag, self.tag.neighbours.owners()):
                self.tag.neighbours.settle(self.tag)
            else:
                told = "another extension owns the tag <lora:...>; it stays the one that applies networks"
                self.tag.neighbours.say_once(told)
                self.tag.restore()
        else:
            self.tag.restore()
            if before is not self.tag and before is not None:
                self.builtin.lend()  # a third extension's tag, which may go on to call the built-in's
            elif not self.builtin.give_back() and before is self.tag:
                registry.pop(self.tag.name)
        if registry.get(self.tag.name) is not before:
            self.tag.texts.forget()

    def before_ui(self) -> None:
        """When all scripts are loaded and no page is built yet; also where there will be none (--nowebui).

        Settings added later than this are unknown to the API before 1.9.
        """
        self.settings.add(self.library.names, self.tag.texts.forget)
        if not self.builtin.enabled:
            made = page.make_page(self.host, self.catalog, self.settings)
            self.webui.ui_extra_networks.register_page(made)
        axes.add_axes(self.webui, self.tag.neighbours, self.library.names)

    def started(self, _demo: Any, app: Any) -> None:
        """When the server runs, with or without a page."""
        self.settle()
        if self.builtin.enabled:
            civitai.attach(self.webui.ui_extra_networks.extra_pages)
        else:
            page.add_api(app, self.catalog)
        training_api(app, self)
        if not getattr(self.webui.shared.cmd_opts, "no_hashing", False):
            self.background.start()

    def pasted(self, _infotext: str, fields: dict[str, Any]) -> None:
        """Infotext was read: let its tags name the files as they are called here."""
        infotext.restore_names(fields, self.catalog.name_of)

    def new_files(self) -> None:
        """Make files that were just written usable by tag and card, and words that were trained by the same prompt."""
        self.catalog.rescan()
        self.tag.texts.forget()

    def unload(self) -> None:
        """Leave the model as its checkpoint made it, and the built-in as its script expects to find it.

        A run in hand is paused: whoever comes next finds it, and goes on when the user says so.
        """
        if self._trainer is not None:
            self._trainer.close()
        self.tag.close()
        self.builtin.leave()
        self.background.stop()

    def _knows_model(self) -> bool:
        if self.webui.sd_models.model_data.sd_model is None:  # asking `shared` would load one
            return True
        try:
            self.host.patchable()
        except WrongBaseModel:
            return False
        return True


def register() -> type | None:
    """Register our callbacks; returns the class of the script, or None where the host is not one we know."""
    kind, webui = detect(), Webui()
    if kind == FORGE:
        from lib_lora.host import forge

        return forge.register(webui)
    if kind != WEBUI:
        return None
    kit = Lorakit(webui)
    callbacks = webui.script_callbacks
    callbacks.on_before_ui(kit.before_ui)
    callbacks.on_app_started(kit.started)
    callbacks.on_model_loaded(kit.host.model_loaded)
    callbacks.on_cfg_denoiser(kit.tag.step)
    callbacks.on_infotext_pasted(kit.pasted)
    callbacks.on_script_unloaded(kit.unload)
    callbacks.on_ui_tabs(lambda: train_tab(kit))
    return _script_class(kit)


def training_api(app: Any, kit: Kit) -> None:
    """Training by HTTP, where the webui has its own API (--api, --nowebui), behind the same password."""
    route = next((route for route in app.routes if getattr(route, "path", "") == "/sdapi/v1/sd-models"), None)
    if route is not None:
        from lib_lora.ui.api import add_api

        add_api(app, kit.trainer, list(getattr(route, "dependencies", ())))


def train_tab(kit: Kit) -> list[tuple[Any, str, str]]:
    """The Train tab, as the webui wants it: (blocks, title, element id)."""
    from lib_lora.host.captioners import captioners
    from lib_lora.ui.tab import build

    return [(build(kit.trainer, lambda: captioners(kit.webui)), "Train LoRA", "lorakit_train")]


def _script_class(kit: Lorakit) -> type:
    scripts = kit.webui.scripts

    class LorakitScript(scripts.Script):  # type: ignore[name-defined, misc]
        """Looks at every picture's start who owns the tag."""

        def title(self) -> str:
            return "LoRA kit"

        def show(self, _is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def process(self, p: Any, *_args: Any) -> None:
            kit.settle()
            if getattr(p, "disable_extra_networks", False):
                kit.tag.leave_alone(p)

        def before_process_batch(self, _p: Any, *_args: Any, **_kwargs: Any) -> None:
            kit.settle()  # after every extension's `process`, one of which may have taken the tag

        def postprocess(self, p: Any, _processed: Any, *_args: Any) -> None:
            kit.tag.finish(p)

    return LorakitScript
