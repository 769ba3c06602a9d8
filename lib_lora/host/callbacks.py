"""Registers everything with the webui: the tag, the Train tab, the setting that turns our applying off."""

from __future__ import annotations

import logging
from typing import Any

from lib_lora.files.library import NetworkLibrary
from lib_lora.host.builtin import BuiltinLora
from lib_lora.host.detect import FORGE, WEBUI, Webui, detect
from lib_lora.host.tag import LoraTag
from lib_lora.host.webui import WebuiHost
from lib_lora.models.ldm_model import why_not
from lib_lora.patch.patcher import Patcher
from lib_lora.runtime import Runtime

log = logging.getLogger(__name__)

SETTING = "lorakit_apply"


class Lorakit:
    """Our objects for one loading of the webui's scripts; a UI reload makes new ones after `unload` of these."""

    def __init__(self, webui: Webui) -> None:
        self.webui = webui
        self.builtin = BuiltinLora(webui)
        self.host = WebuiHost(webui, self.builtin)
        self.library = NetworkLibrary(self.host.network_folders())
        self.tag = LoraTag(self.host, Runtime(self.library, Patcher()))
        self.host.restore = self.tag.restore

    def settle(self) -> None:
        """Own the tag if the setting says so and the loaded model is one we know; else the built-in owns it."""
        model = self.webui.sd_models.model_data.sd_model  # as it is: asking `shared` would load one
        wanted = bool(getattr(self.webui.shared.opts, SETTING, True))
        if wanted and (model is None or why_not(model) is None):
            if not self.builtin.take(self.tag):
                log.warning("another extension owns the tag <lora:...>; it stays the one that applies networks")
                self.tag.restore()
            return
        self.tag.restore()
        registry = self.webui.extra_networks.extra_network_registry
        if registry.get(self.tag.name) is self.tag and not self.builtin.give_back():
            registry.pop(self.tag.name)

    def new_files(self) -> None:
        """Make files that were just written usable by tag and card."""
        self.library.scan()
        self.builtin.rescan()

    def unload(self) -> None:
        """Leave the model as its checkpoint made it."""
        self.tag.restore()


def register() -> type | None:
    """Register our callbacks; returns the class of the script, or None where the host is not one we know."""
    kind = detect()
    if kind != WEBUI:
        if kind == FORGE:
            log.warning("sd-webui-lorakit does not know Forge yet; Forge's own Lora extension goes on as before")
        return None
    webui = Webui()
    kit = Lorakit(webui)
    callbacks = webui.script_callbacks
    callbacks.on_app_started(lambda _demo, _app: kit.settle())
    callbacks.on_model_loaded(kit.host.model_loaded)
    callbacks.on_script_unloaded(kit.unload)
    callbacks.on_ui_settings(lambda: _add_setting(webui))
    callbacks.on_ui_tabs(lambda: _tab(kit))
    return _script_class(kit)


def _add_setting(webui: Webui) -> None:
    shared = webui.shared
    option = shared.OptionInfo(True, "Apply <lora:...> with LoRA kit", section=("lorakit", "LoRA kit"))
    option.info("off: the webui's built-in Lora extension applies networks again, from the next picture on")
    shared.opts.add_option(SETTING, option)


def _tab(kit: Lorakit) -> list[tuple[Any, str, str]]:
    """The Train tab, as the webui wants it: (blocks, title, element id)."""
    from lib_lora.host.training import make_service
    from lib_lora.ui.train_tab import build

    return [(build(make_service(kit.host, kit.new_files)), "Train LoRA", "lorakit_train")]


def _script_class(kit: Lorakit) -> type:
    scripts = kit.webui.scripts

    class LorakitScript(scripts.Script):  # type: ignore[name-defined, misc]
        """Looks at every picture's start who owns the tag."""

        def title(self) -> str:
            return "LoRA kit"

        def show(self, _is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def process(self, _p: Any, *_args: Any) -> None:
            kit.settle()

    return LorakitScript
