"""Forge: the Train tab and training by HTTP. Its own backend applies networks, and ours keeps out of its way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lib_lora.errors import BadConfig, BadFile, LoraError
from lib_lora.files.library import NetworkLibrary
from lib_lora.host import training
from lib_lora.host.builtin import BuiltinLora
from lib_lora.host.detect import Webui
from lib_lora.host.forge_base import ForgeBase
from lib_lora.host.guard import backend_flags, random_states
from lib_lora.host.neighbours import FOLDER
from lib_lora.host.options import OURS
from lib_lora.host.place import WebuiPlace
from lib_lora.host.webui import WebuiHost
from lib_lora.prompt import Presets
from lib_lora.train.config import JobConfig
from lib_lora.ui.trainer import BaseFacts

if TYPE_CHECKING:
    from lib_lora.ui.local_trainer import LocalTrainer

log = logging.getLogger(__name__)
UNREAD = ("ia3", "oft", "boft")
OTHER_FILES = ("dreambooth", "textual_inversion", "custom_diffusion")  # methods that write no network of that type
TOLD = "Forge applies <lora:...> by its own backend, LoRA kit adds the Train tab"
NOTE = (
    "Forge applies networks by its own backend. LoRA kit leaves prompts and pictures alone here and adds the tab Train "
    "LoRA, which trains on the file of the chosen checkpoint."
)


class ForgeHost(WebuiHost):
    """`ports.Host` over Forge: the chosen checkpoint's file, in Forge's place on the GPU while we work."""

    def __init__(self, webui: Webui) -> None:
        super().__init__(webui, BuiltinLora(webui))
        self.base = ForgeBase(webui)

    def model(self) -> Any:
        """The chosen checkpoint, to train on or to draw with. Raises LoraError for one that we cannot."""
        return self.base.model()

    def exclusive(self, job: Callable[[], Any], name: str = "LoRA training", prove: bool = True) -> Any:
        """Run `job` alone: Forge's queue lock held, its model out of memory, flags and random states put back.

        With `prove` what `job` worked on is thrown away after it; else it is kept until Forge draws.
        """
        shared = self.webui.shared
        with self.webui.call_queue.queue_lock:
            shared.state.begin(job=name)
            try:
                self.base.make_room()
                with random_states(), backend_flags(), torch.inference_mode(False), torch.enable_grad():
                    return job()
            finally:
                try:
                    if prove:
                        self.base.drop()
                finally:
                    shared.state.end()


class ForgePlace(WebuiPlace):
    """`local_trainer.Place` over Forge: what differs is where the base comes from."""

    _host: ForgeHost

    def base(self) -> BaseFacts:
        """The chosen checkpoint, as far as its file's beginning tells."""
        base, refused = self._host.base, ""
        facts = base.facts()
        try:
            training.require_packages()
        except LoraError as error:
            refused = str(error)
        refused = self._host.for_the_page(facts.refused or refused)
        return BaseFacts(base.name or "no checkpoint", facts.version, facts.resolution, refused)

    def loaded(self) -> str:
        """The name of the chosen checkpoint, "" while none is."""
        return self._host.base.name

    def defaults(self) -> Mapping[str, Any]:
        """See `training.defaults`."""
        return training.defaults(self._host, self._host.base.facts().resolution)

    def check(self, job: JobConfig) -> None:
        """Raises BadConfig for what an exposed webui forbids, for another checkpoint, and for what Forge cannot use."""
        training.require_allowed(self._host, job)
        training.require_loaded(job, self._host.base.file)
        _require_use(job)


def _require_use(job: JobConfig) -> None:
    """Raises BadConfig for a job whose result Forge cannot apply."""
    method, kind = job.method.name, job.network.type
    if method == "hypernetwork":
        wrong, instead = f"method.name = {method!r}: Forge applies no hypernetworks", "train a network"
    elif kind in UNREAD and method not in OTHER_FILES:
        wrong, instead = f"network.type = {kind!r}: Forge reads no networks of this type", "use 'lora' or 'lokr'"
    else:
        return
    raise BadConfig(f"{wrong}; {instead}, or train from the command line: python -m lib_lora train JOB.toml")


class ForgeKit:
    """Our objects for one loading of Forge's scripts."""

    def __init__(self, webui: Webui) -> None:
        self.webui = webui
        self.host = ForgeHost(webui)
        self.library = NetworkLibrary(self.host.network_folders(), self.host.data_folder() / FOLDER / "networks.json")
        self._trainer: LocalTrainer | None = None

    @property
    def trainer(self) -> LocalTrainer:
        """Who trains; made when first asked for, as Forge's folders are known by then."""
        if self._trainer is None:
            from lib_lora.ui.local_trainer import LocalTrainer

            self._trainer = LocalTrainer(ForgePlace(self.host, self.library, self.new_files, self.presets))
        return self._trainer

    def presets(self) -> Presets:
        """Block weights of the user's own, for the pictures that the Train tab draws."""
        own: Path = self.host.data_folder() / FOLDER
        try:
            return Presets.load(*([own] if own.is_dir() else []))
        except BadFile as error:
            log.warning("%s", error)
            return Presets()

    def before_ui(self) -> None:
        """A page among Forge's settings that says what we do here."""
        shared = self.webui.shared
        note = shared.OptionHTML(NOTE)
        note.section = OURS
        shared.opts.add_option("lorakit_forge", note)

    def started(self, _demo: Any, app: Any) -> None:
        """When the server runs, with or without a page."""
        from lib_lora.host.callbacks import training_api

        training_api(app, self)
        log.warning("sd-webui-lorakit: %s", TOLD)

    def new_files(self) -> None:
        """Make files that were just written usable by tag and card."""
        self.library.scan()
        self.host.base.new_files()

    def unload(self) -> None:
        """A run in hand is paused: whoever comes next finds it, and goes on when the user says so."""
        if self._trainer is not None:
            self._trainer.close()
        self.host.base.drop()


def register(webui: Webui) -> type | None:
    """Register our callbacks with Forge; the class of the script, or None for a Forge of before August 2024."""
    from lib_lora.host.callbacks import train_tab

    if not hasattr(webui.sd_models.model_data, "forge_loading_parameters"):
        log.warning(
            "sd-webui-lorakit does not know this Forge; it does nothing here: update Forge to use the Train tab"
        )
        return None
    kit = ForgeKit(webui)
    callbacks = webui.script_callbacks
    callbacks.on_before_ui(kit.before_ui)
    callbacks.on_app_started(kit.started)
    callbacks.on_script_unloaded(kit.unload)
    callbacks.on_ui_tabs(lambda: train_tab(kit))
    return _script_class(kit)


def _script_class(kit: ForgeKit) -> type:
    scripts = kit.webui.scripts

    class LorakitScript(scripts.Script):  # type: ignore[name-defined, misc]
        """Gives memory back before Forge reads its model."""

        def title(self) -> str:
            return "LoRA kit"

        def show(self, _is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def before_process(self, _p: Any, *_args: Any) -> None:
            kit.host.base.drop()

    return LorakitScript
