"""Training in the webui's process, against the loaded checkpoint: the service behind the Train tab."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lib_lora.errors import BadConfig, LoraError, TrainingFailed
from lib_lora.host.webui import WebuiHost
from lib_lora.train.config import JobConfig
from lib_lora.ui.service import BackgroundService

log = logging.getLogger(__name__)

NEEDED = ("accelerate", "diffusers")
RUNS = "lorakit-runs"
SD1_WIDTH = 320  # channels of the first level; narrower models were trained on small pictures


def make_service(host: WebuiHost, new_files: Callable[[], None]) -> BackgroundService:
    """The service of the Train tab. `new_files` is called after a run, so that tag and card know the new network."""

    def run(job: JobConfig, on_event: Callable[[Mapping[str, Any]], None], cancelled: Callable[[], bool]) -> Path:
        _require_packages()
        _require_allowed(host, job)
        try:
            file: Path = host.exclusive(lambda: _train(host, job, on_event, cancelled))
        except LoraError:
            raise
        except Exception as error:  # nobody would see it in this thread: the tab shows it, the console has the trace
            log.exception("training failed")
            raise TrainingFailed(f"{type(error).__name__}: {error}; the console shows where it happened") from error
        new_files()
        return file

    return BackgroundService(run, lambda: base_name(host), lambda: defaults(host))


def base_name(host: WebuiHost) -> str:
    """The loaded checkpoint's name, or the chosen one's while none is loaded yet."""
    info = getattr(host.webui.sd_models.model_data.sd_model, "sd_checkpoint_info", None)
    chosen = getattr(host.webui.shared.opts, "sd_model_checkpoint", None)
    return str(getattr(info, "name_for_extra", None) or chosen or "the loaded checkpoint")


def defaults(host: WebuiHost) -> dict[str, Any]:
    """What this host sets in every job: run folders in the data folder, networks where the tag looks for them."""
    model = host.webui.sd_models.model_data.sd_model
    unet = getattr(getattr(model, "model", None), "diffusion_model", None)
    small = getattr(unet, "model_channels", SD1_WIDTH) < SD1_WIDTH
    return {
        "output.folder": str(host.data_folder() / RUNS),
        "output.network_folder": str(host.network_folders()[0]),
        "data.resolution": 128 if small else 512,
    }


def _train(
    host: WebuiHost, job: JobConfig, on_event: Callable[[Mapping[str, Any]], None], cancelled: Callable[[], bool]
) -> Path:
    from lib_lora.train.engine import train

    state = host.webui.shared.state

    def tell(event: Mapping[str, Any]) -> None:
        if event.get("type") == "step":
            state.job_count, state.sampling_step, state.sampling_steps = 1, event["step"], event["steps"]
            state.textinfo = f"training {job.output.name}: step {event['step']} of {event['steps']}"
        on_event(event)

    # The webui's own Interrupt button stops a run as well.
    return train(job, host.model(), on_event=tell, cancel=lambda: cancelled() or bool(state.interrupted)).file


def _require_allowed(host: WebuiHost, job: JobConfig) -> None:
    """Raises BadConfig if others can reach the page and the job reads or writes outside of what they may use."""
    options = host.webui.shared.cmd_opts
    exposed = getattr(options, "disable_extension_access", False) or getattr(options, "hide_ui_dir_config", False)
    home = host.data_folder().resolve()
    places = [home, *(folder.resolve() for folder in host.network_folders())]
    for key, allowed in (("data.folder", [home]), ("output.folder", [home]), ("output.network_folder", places)):
        folder = Path(os.path.expanduser(job.get(key))).resolve()
        if exposed and job.get(key) and not any(folder.is_relative_to(place) for place in allowed):
            raise BadConfig(
                f"{key} = {job.get(key)!r} is outside of {str(home)!r}, and this webui is open to others "
                "(--listen, --share or --hide-ui-dir-config); use a folder in there"
            )


def _require_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise TrainingFailed(
            f"training needs {' and '.join(missing)}, which install.py could not install; install by hand into the "
            "webui's Python (pip install diffusers==0.30.3 accelerate) and start the webui again"
        )
