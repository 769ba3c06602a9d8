"""Training in the webui's process, against the loaded checkpoint: the service behind the Train tab."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lib_lora.errors import BadConfig, TrainingFailed
from lib_lora.files.given import given_path
from lib_lora.host.webui import WebuiHost
from lib_lora.keys import versions
from lib_lora.models.ldm_layers import version_of
from lib_lora.train.config import JobConfig
from lib_lora.train.control import Control

log = logging.getLogger(__name__)

NEEDED = ("accelerate", "diffusers")
RUNS = "lorakit-runs"
SD1_WIDTH = 320  # channels of the first level; narrower models were trained on small pictures
SMALL = 128
# Settings that name a place of the webui's own files, and those that name one of the user's.
SHARED = (
    *("output.network_folder", "output.embedding_folder", "output.hypernetwork_folder", "output.checkpoint_folder"),
    *("network.continue_from", "base.checkpoint"),
)
PRIVATE = (
    "data.folder",
    "data.mask_folder",
    "data.cache_folder",
    "prior.folder",
    "method.pairs_after",
    "output.folder",
)


def list_anew(host: WebuiHost, job: JobConfig) -> None:
    """Let the webui see what is no network; embeddings it looks for by itself."""
    webui, opts = host.webui, host.webui.shared.opts
    if job.method.name == "hypernetwork":
        webui.shared.reload_hypernetworks()
    if job.method.name == "dreambooth":
        chosen = opts.sd_model_checkpoint
        webui.sd_models.list_models()
        opts.data["sd_model_checkpoint"] = chosen  # with --ckpt the list comes with that one chosen


def base_name(host: WebuiHost) -> str:
    """The loaded checkpoint's name, or the chosen one's while none is loaded yet."""
    info = getattr(host.webui.sd_models.model_data.sd_model, "sd_checkpoint_info", None)
    chosen = getattr(host.webui.shared.opts, "sd_model_checkpoint", None)
    return str(getattr(info, "name_for_extra", None) or chosen or "the loaded checkpoint")


def defaults(host: WebuiHost, resolution: int = 0) -> dict[str, Any]:
    """What this host sets in every job: folders where the webui looks, and the checkpoint's own resolution.

    That is the loaded model's if it is not given.
    """
    return {
        "output.folder": str(host.data_folder() / RUNS),
        **{key: str(folder) for key, folder in _homes(host).items()},
        "data.resolution": resolution or resolution_of(host.webui.sd_models.model_data.sd_model),
    }


def resolution_of(model: Any) -> int:
    """The side of the pictures a checkpoint was trained on, as far as its structure tells; 512 while none is loaded."""
    unet = getattr(getattr(model, "model", None), "diffusion_model", None)
    if getattr(unet, "model_channels", SD1_WIDTH) < SD1_WIDTH:
        return SMALL
    version = version_of(model) if model is not None else None
    by_version = {versions.SDXL: 1024, versions.SD2: 768 if getattr(model, "parameterization", "eps") == "v" else 512}
    return by_version.get(str(version), 512)


def _homes(host: WebuiHost) -> dict[str, Path]:
    """Where the webui looks for each kind of finished file, by the setting that names its folder."""
    options, models = host.webui.shared.cmd_opts, Path(host.webui.paths.models_path)
    given = {
        "output.embedding_folder": getattr(options, "embeddings_dir", None) or host.data_folder() / "embeddings",
        "output.hypernetwork_folder": getattr(options, "hypernetwork_dir", None) or models / "hypernetworks",
        "output.checkpoint_folder": getattr(options, "ckpt_dir", None) or models / "Stable-diffusion",
    }
    return {"output.network_folder": host.network_folders()[0], **{key: Path(value) for key, value in given.items()}}


def train_on(
    host: WebuiHost,
    job: JobConfig,
    on_event: Callable[[Mapping[str, Any]], object],
    control: Control,
    resume: Path | None = None,
) -> Path:
    from lib_lora.train.engine import train

    state, model = host.webui.shared.state, host.model()
    require_loaded(job, model.source)

    def tell(event: Mapping[str, Any]) -> None:
        kind, name = event.get("type"), job.output.name
        if kind == "step":
            state.job_count, state.sampling_step, state.sampling_steps = 1, event["step"], event["steps"]
            state.textinfo = f"training {name}: step {event['step']} of {event['steps']}"
        elif kind == "preparing":
            state.textinfo = f"training {name}: {event['done']} of {event['total']} pictures are ready"
        on_event(event)

    # The webui's own Interrupt button pauses: it may have been meant for a picture, and reloading the UI presses it
    control.pause_when(lambda: bool(state.interrupted))
    return train(job, model, on_event=tell, cancel=control, resume=resume).file


def require_loaded(job: JobConfig, loaded: Path | None) -> None:
    """Raises BadConfig if the job is for another checkpoint than the loaded one."""
    wanted = job.base.checkpoint
    if wanted and (loaded is None or Path(os.path.expanduser(wanted)).resolve() != loaded.resolve()):
        raise BadConfig(
            f"base.checkpoint = {wanted!r} is not the loaded checkpoint, {str(loaded)!r}; choose it at the top of the "
            "page and leave the setting empty, or train from the command line: python -m lib_lora train JOB.toml"
        )


def require_allowed(host: WebuiHost, job: JobConfig) -> None:
    """Raises BadConfig if others can reach the page and the job reads or writes outside of what they may use.

    Nor may they then name code to import.
    """
    if not host.exposed:
        return
    for key, value in _paths(job):
        allowed(host, value, key)
    if job.optimizer.name == "custom":
        raise BadConfig(
            "optimizer.name = 'custom' imports any code, and this webui is open to others (--listen, --share or "
            "--hide-ui-dir-config); use another optimizer"
        )


def allowed(host: WebuiHost, path: str, what: str) -> Path:
    """The path a user gave for the setting or field `what`, resolved.

    Raises BadConfig for one that cannot be, or, if others can reach the page, that leads out of what they may use.
    """
    found = given_path(path, what)
    home = host.data_folder().resolve()
    shared = (folder.resolve() for folder in (*host.network_folders(), *_homes(host).values()))
    if host.exposed and not any(found.is_relative_to(place) for place in (home, *(shared if what in SHARED else ()))):
        raise BadConfig(
            f"{what} = {path!r} is outside of the webui's data folder, and this webui is open to others "
            "(--listen, --share or --hide-ui-dir-config); use a folder in there"
        )
    return found


def _paths(job: JobConfig) -> Iterator[tuple[str, str]]:
    """Every path a job names, by its setting."""
    named = [(key, str(job.get(key))) for key in (*SHARED, *PRIVATE)]
    of_concepts = [("concept", path) for concept in job.concepts for path in (concept.folder, concept.class_folder)]
    yield from ((key, path) for key, path in (*named, *of_concepts) if path)


def require_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise TrainingFailed(
            f"training needs {' and '.join(missing)}, which install.py could not install; install by hand into the "
            "webui's Python (pip install diffusers==0.30.3 accelerate) and start the webui again"
        )
