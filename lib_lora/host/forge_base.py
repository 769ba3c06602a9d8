"""The checkpoint that Forge draws with, as a base to train on: its file, which we read ourselves.

Forge keeps a model in a form of its own, in pieces that it moves between GPU and main memory. So it is taken out of
memory while we work, and Forge reads it anew for its next picture, as it does after a change of the checkpoint.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lib_lora.errors import BadConfig, LoraError
from lib_lora.files.tensors import tensor_reader
from lib_lora.host.detect import Webui
from lib_lora.host.training import SD1_WIDTH, SMALL
from lib_lora.keys import versions
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.checkpoint_config import EPSILON, settings_of
from lib_lora.models.checkpoint_kind import ENTRY, kind_of
from lib_lora.models.diffusers_model import DiffusersModel

NO_NETWORKS = str([])  # what Forge's model notes while no network is applied to it
NONE_CHOSEN = "no checkpoint is chosen; put one into models/Stable-diffusion and choose it at the top of the page"
Stamp = tuple[str, int, int]


@dataclass(frozen=True)
class FileFacts:
    """What a checkpoint's file tells of itself. `refused` says why it cannot be trained on; empty if it can."""

    version: str
    resolution: int
    refused: str = ""


class ForgeBase:
    """The chosen checkpoint. What it has read is kept until Forge draws, or another is chosen."""

    def __init__(self, webui: Webui) -> None:
        self.webui = webui
        self._known: tuple[Stamp, FileFacts] | None = None
        self._kept: tuple[Stamp, DiffusersModel] | None = None

    def chosen(self) -> Any:
        """Forge's record of the checkpoint that its next picture will be made with; None where there is none."""
        models = self.webui.sd_models
        info = models.model_data.forge_loading_parameters.get("checkpoint_info")
        if info is None:  # no page was built yet, or there will be none
            info = models.checkpoint_aliases.get(getattr(self.webui.shared.opts, "sd_model_checkpoint", None))
        return info or next(iter(list(models.checkpoints_list.values())), None)

    @property
    def name(self) -> str:
        """What it is called, "" where none is chosen."""
        info = self.chosen()
        return "" if info is None else str(info.name_for_extra)

    @property
    def file(self) -> Path | None:
        """Its file."""
        info = self.chosen()
        return None if info is None else Path(info.filename)

    def facts(self) -> FileFacts:
        """What its file's beginning tells; read once for each file."""
        file = self.file
        if file is None:
            return FileFacts(versions.SD1, 512, NONE_CHOSEN)
        try:
            stamp = _stamp(file)
        except BadConfig as error:
            return FileFacts(versions.SD1, 512, str(error))
        if self._known is None or self._known[0] != stamp:
            self._known = (stamp, facts_of(file))
        return self._known[1]

    def model(self) -> DiffusersModel:
        """The model, in the file's precision on a GPU, in float32 on the CPU; with Forge's clip skip.

        Raises LoraError for a file that cannot be trained on.
        """
        file = self.file
        if file is None:
            raise BadConfig(NONE_CHOSEN)
        stamp = _stamp(file)
        if self._kept is None or self._kept[0] != stamp:
            self.drop()
            device = torch.device(self.webui.devices.device)
            dtype = torch.float32 if device.type == "cpu" else None
            self._kept = (stamp, load_checkpoint(file, dtype, device))
        model = self._kept[1]
        model.name = self.name
        model.clip_skip = int(getattr(self.webui.shared.opts, "CLIP_stop_at_last_layers", 1))
        return model

    def drop(self) -> None:
        """Free what `model` keeps."""
        if self._kept is not None:
            self._kept = None
            self._sweep()

    def make_room(self) -> None:
        """Take Forge's model, and whatever else it moved to the GPU, out of memory; its next picture reads it anew."""
        models = self.webui.sd_models
        if models.model_data.forge_hash:
            models.model_data.sd_model = models.FakeInitialModel()
            self.let_read_anew()
        models.unload_model_weights()
        self._sweep()

    def let_read_anew(self) -> None:
        """Let Forge's next picture read checkpoint and networks, and encode its texts, anew."""
        self.webui.sd_models.model_data.forge_hash = ""
        self.webui.processing.need_global_unload = True

    def new_files(self) -> None:
        """Let Forge see network files that came, went or changed: it keeps those that it has read, by name."""
        networks = sys.modules.get("networks")
        if networks is None or not hasattr(networks, "load_lora_state_dict"):  # its Lora extension is off
            return
        networks.load_lora_state_dict.cache_clear()
        networks.list_available_networks()
        applied = getattr(self.webui.sd_models.model_data.sd_model, "current_lora_hash", NO_NETWORKS)
        if applied != NO_NETWORKS:
            self.let_read_anew()

    def _sweep(self) -> None:
        gc.collect()
        self.webui.devices.torch_gc()


def facts_of(file: Path) -> FileFacts:
    """Which base a checkpoint's file is, and the side in pixels of the pictures it was trained on."""
    try:
        with tensor_reader(file) as (header, _):
            shapes = header.shapes()
            version = kind_of(shapes, file.name)
            predicts = settings_of(file, header.metadata, shapes).prediction_type
    except LoraError as error:
        told = str(error).replace(str(file), file.name)  # others may read it
        return FileFacts(versions.SD1, 512, f"cannot train on this checkpoint: {told}")
    if shapes[ENTRY][0] < SD1_WIDTH:
        return FileFacts(version, SMALL)
    # Most checkpoints of SD2 that do not tell what they predict are those of 768 pixels
    usual = {versions.SDXL: 1024, versions.SD2: 512 if predicts == EPSILON else 768}
    return FileFacts(version, usual.get(version, 512))


def _stamp(file: Path) -> Stamp:
    """What changes with the file. Raises BadConfig if it is gone."""
    try:
        about = file.stat()
    except OSError as error:
        told = f"the checkpoint {file.name!r} cannot be read ({error.strerror}); choose another at the top of the page"
        raise BadConfig(told) from error
    return str(file), about.st_mtime_ns, about.st_size
