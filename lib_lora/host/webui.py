"""The AUTOMATIC1111 webui as a Host: its model, its folders, and the model for oneself alone."""

from __future__ import annotations

import logging
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lib_lora.host.builtin import BuiltinLora
from lib_lora.host.detect import Webui
from lib_lora.host.guard import require_in_place, unharmed
from lib_lora.keys import versions
from lib_lora.models.ldm_layers import LdmLayers
from lib_lora.models.ldm_model import LdmModel
from lib_lora.models.ldm_session import replace_inference_tensors

log = logging.getLogger(__name__)


class WebuiHost:
    """`ports.Host` over the webui. `restore` takes our own networks out of the model; the owner sets it."""

    def __init__(self, webui: Webui, builtin: BuiltinLora) -> None:
        self.webui = webui
        self.builtin = builtin
        self.restore: Callable[[], None] = lambda: None
        self._loads: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._count = 0
        self._model: LdmModel | None = None
        self._layers: LdmLayers | None = None

    def patchable(self) -> LdmLayers:
        """The loaded checkpoint, to apply networks to. Raises WrongBaseModel if it is of a kind we do not know."""
        current, generation = self._current()
        if self._layers is None or self._layers.model is not current or self._layers.generation != generation:
            self._layers = None
            self._layers = LdmLayers(current, generation)
        return self._layers

    def model(self) -> LdmModel:
        """The loaded checkpoint, to train on, with clip skip and noise schedule as the webui's settings have them.

        Raises WrongBaseModel if it is of a kind that training does not know.
        """
        current, generation = self._current()
        if self._model is None or self._model.model is not current or self._model.generation != generation:
            self._model = None
            self._model = LdmModel(current, generation)
        opts, version = self.webui.shared.opts, self._model.version
        skips = version == versions.SD1 or (version == versions.SDXL and getattr(opts, "sdxl_clip_l_skip", False))
        self._model.clip_skip = int(opts.CLIP_stop_at_last_layers) if skips else 0
        ends_in_noise = getattr(opts, "sd_noise_schedule", "Default") == "Zero Terminal SNR"
        self._model.zero_terminal = ends_in_noise and self._model.prediction_type == "v_prediction"
        return self._model

    def model_loaded(self, sd_model: Any) -> None:
        """Tell that weights were put into `sd_model`, whatever it held before."""
        # Counted over all models: one that takes the place of a freed one in memory must not pass for it.
        self._count += 1
        self._loads[sd_model] = self._count
        self._model = self._layers = None  # the one before may go

    def _current(self) -> tuple[Any, int]:
        current = self.webui.shared.sd_model
        return current, self._loads.get(current, 0) if current is not None else 0

    def network_folders(self) -> Sequence[Path]:
        """`--lora-dir`, where new files go, then the old LyCORIS folder if there is one."""
        options = self.webui.shared.cmd_opts
        default = Path(self.webui.paths.models_path) / "Lora"
        first = Path(getattr(options, "lora_dir", None) or default)
        try:
            first.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # on a drive that is away, say, and may come back
            log.warning("the folder of networks %s cannot be made: %s", first, error)
        second = getattr(options, "lyco_dir_backcompat", None)
        return [first, *([Path(second)] if second and Path(second).is_dir() else [])]

    def data_folder(self) -> Path:
        """Where the webui keeps what it writes."""
        return Path(self.webui.paths.data_path)

    @property
    def exposed(self) -> bool:
        """Whether others can reach the page, or see no folders there: --listen, --share, --hide-ui-dir-config, ..."""
        options = self.webui.shared.cmd_opts
        return any(getattr(options, name, False) for name in ("disable_extension_access", "hide_ui_dir_config"))

    def for_the_page(self, message: str) -> str:
        """A message as users may read it: of an exposed webui without where its folders lie."""
        if not self.exposed:
            return message
        for folder in (*self.network_folders(), self.data_folder()):
            for path in {folder.absolute(), folder.resolve()}:
                plain = (str(path), os.sep)
                quoted = tuple(repr(one)[1:-1] for one in plain)  # as messages and TOML have some of them
                for text, separator in {plain, quoted} if path.name else ():
                    message = message.replace(text + separator, "").replace(text, path.name)
        return message

    def notify(self, message: str) -> None:
        """Show a message under the webui's progress bar and on its console."""
        self.webui.shared.state.textinfo = message
        log.warning("%s", message)

    def exclusive(self, job: Callable[[], Any], name: str = "LoRA training", prove: bool = True) -> Any:
        """Run `job` alone on the model: queue lock held, no network applied, everything restored and checked after it.

        All of the checkpoint is covered: UNet, both text encoders, autoencoder. `prove` that no weight was changed,
        which takes a second per GB. Raises WrongBaseModel if it is of another kind, streamed (--medvram,
        --medvram-sdxl, --lowvram) or put aside in main memory.
        """
        shared = self.webui.shared
        with self.webui.call_queue.queue_lock:
            shared.state.begin(job=name)
            try:
                model = self.model()
                require_in_place(model, self.webui.devices.device)
                self.builtin.release()
                self.restore()
                replace_inference_tensors(model.model)
                with self._plain_forward(model.model), unharmed(model.model, prove):
                    with torch.inference_mode(False), torch.enable_grad():
                        return job()
            finally:
                shared.state.end()

    @contextmanager
    def _plain_forward(self, sd_model: Any) -> Iterator[None]:
        """No other UNet, merged tokens, tiles, hypernetworks or wrapping convolutions left over from the last picture.

        The webui sets each of them anew for every picture; only hypernetworks are kept between pictures. Nor does it
        make single layers float32, for which there is autocast.
        """
        webui = self.webui
        webui.sd_unet.apply_unet("None")
        webui.sd_models.apply_token_merging(sd_model, 0)
        webui.sd_hijack.model_hijack.apply_circular(False)
        hypertile = getattr(sys.modules.get("hypertile"), "hypertile_hook_model", None)
        if hypertile is not None:
            for part in (sd_model.model, sd_model.first_stage_model):
                hypertile(part, 64, 64, enable=False)
        devices = webui.devices
        hypernetworks, upcast = webui.shared.loaded_hypernetworks, getattr(devices, "unet_needs_upcast", False)
        webui.shared.loaded_hypernetworks = []
        devices.unet_needs_upcast = False  # --upcast-sampling turns weights of the UNet into float32 as it goes
        try:
            yield
        finally:
            webui.shared.loaded_hypernetworks, devices.unet_needs_upcast = hypernetworks, upcast
