"""An extension for tests: tells over the API what the webui's inside looks like."""

from __future__ import annotations

import sys
import zlib
from typing import Any

import torch
from fastapi import FastAPI
from modules import extra_networks, script_callbacks, scripts, sd_models, shared, ui_extra_networks

BARE = "Linear.forward"


class Probe(scripts.Script):
    """Remembers the last picture's comments, and which networks the built-in's list showed while it was made."""

    comments: list[str] = []
    loaded: list[Any] = []

    def title(self) -> str:
        return "probe"

    def show(self, _is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def process_batch(self, _p: Any, *_args: Any, **_kwargs: Any) -> None:
        found = getattr(sys.modules.get("networks"), "loaded_networks", [])
        Probe.loaded = [[net.name, net.te_multiplier, net.unet_multiplier] for net in found]

    def postprocess(self, p: Any, _processed: Any, *_args: Any) -> None:
        Probe.comments = list(p.comments)


def weights() -> int:
    """A checksum over every weight of the loaded model."""
    total = 0
    for _, parameter in sd_models.model_data.sd_model.named_parameters():
        raw = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
        total = zlib.crc32(raw.numpy().tobytes(), total)
    return total


def state() -> dict[str, Any]:
    """What the tests look at."""
    registry = extra_networks.extra_network_registry
    return {
        "comments": Probe.comments,
        "loaded": Probe.loaded,
        "owner": type(registry.get("lora")).__name__,
        "alias": type(extra_networks.extra_network_aliases.get("lyco")).__name__,
        "bare": torch.nn.Linear.forward.__qualname__ == BARE,
        "weights": weights(),
        "pages": [f"{type(page).__name__}: {page.title}" for page in ui_extra_networks.extra_pages],
        "embeddings": sorted(_database().word_embeddings),
    }


def _database() -> Any:
    from modules import sd_hijack

    return sd_hijack.model_hijack.embedding_db


def cards(tab: str) -> str:
    """The Lora page's html, built anew."""
    (page,) = [page for page in ui_extra_networks.extra_pages if page.title == "Lora"]
    page.refresh()
    return str(page.create_html(tab))


def started(_demo: Any, app: FastAPI) -> None:
    app.add_api_route("/probe", state, methods=["GET"])
    app.add_api_route("/probe/cards", lambda: {"html": cards("txt2img")}, methods=["GET"])
    app.add_api_route("/probe/reload", shared.state.request_restart, methods=["POST"])
    app.add_api_route("/probe/axes", axes, methods=["GET"])
    app.add_api_route("/probe/plot", plot, methods=["GET"])
    app.add_api_route("/probe/paste", paste, methods=["POST"])
    app.add_api_route("/probe/install", install, methods=["POST"])


def axes() -> list[str]:
    """The labels of the X/Y/Z plot's axes for txt2img, in the order of its lists."""
    (data,) = {id(d.module): d for d in scripts.scripts_data if d.path.endswith("xyz_grid.py")}.values()
    return [o.label for o in data.module.axis_options if not getattr(o, "is_img2img", False)]


def plot() -> list[list[Any]]:
    """Label and value of each of the X/Y/Z plot's arguments."""
    runner = scripts.scripts_txt2img
    (script,) = [script for script in runner.selectable_scripts if script.title() == "X/Y/Z plot"]
    return [[c.label, getattr(c, "value", None)] for c in runner.inputs[script.args_from : script.args_to]]


def paste(body: dict[str, str]) -> dict[str, Any]:
    """The fields that pasting an infotext fills."""
    try:
        from modules import infotext_utils
    except ImportError:  # before 1.8
        from modules import generation_parameters_copypaste as infotext_utils
    fields = infotext_utils.parse_generation_parameters(body["text"])
    script_callbacks.infotext_pasted_callback(body["text"], fields)
    return {name: value for name, value in fields.items() if isinstance(value, str)}


def install(body: dict[str, str]) -> dict[str, str]:
    """What the button "Install from URL" does."""
    from modules import ui_extensions

    return {"answer": ui_extensions.install_extension_from_url("", body["url"])[1]}


script_callbacks.on_app_started(started)
