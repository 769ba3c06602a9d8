"""The webui's page of network cards and its API, where the built-in extension that brings them is disabled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lib_lora.host import civitai
from lib_lora.host.catalog import UNKNOWN, VERSIONS, Card, Catalog
from lib_lora.host.detect import Webui
from lib_lora.host.options import Settings
from lib_lora.host.webui import WebuiHost

TITLE = "Lora"
MODELS = ("SD1", "SD2", "SDXL")
# What the user writes about a network, under the names that the built-in gives them.
VERSION, ACTIVATION, WEIGHT, NEGATIVE = "sd version", civitai.ACTIVATION, "preferred weight", "negative text"


def make_page(host: WebuiHost, catalog: Catalog, settings: Settings) -> Any:
    """The page, of the webui's own class. That class is another one after each UI reload."""
    webui = host.webui
    items = _Items(webui, catalog, settings)

    class LoraPage(webui.ui_extra_networks.ExtraNetworksPage):  # type: ignore[name-defined, misc]
        """A card for every network file."""

        def __init__(self) -> None:
            super().__init__(TITLE)

        def refresh(self) -> None:
            catalog.rescan()

        def create_item(self, name: str, index: int | None = None, enable_filter: bool = True) -> Any:
            card = catalog.card(name)
            return None if card is None else items.make(self, card, index, enable_filter)

        def list_items(self) -> Iterator[Any]:
            made = (items.make(self, card, index) for index, card in enumerate(catalog.cards()))
            yield from (item for item in made if item is not None)

        def read_user_metadata(self, item: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            super().read_user_metadata(item, *args, **kwargs)
            civitai.complete(item)

        def allowed_directories_for_previews(self) -> list[str]:
            return [str(folder) for folder in host.network_folders()]

        def create_user_metadata_editor(self, ui: Any, tabname: str) -> Any:
            from lib_lora.ui.card_editor import editor_class

            base = webui.ui_extra_networks_user_metadata.UserMetadataEditor
            return editor_class(base, (*MODELS, UNKNOWN))(ui, tabname, self)

    return LoraPage()


class _Items:
    """What the webui's page class makes cards from."""

    def __init__(self, webui: Webui, catalog: Catalog, settings: Settings) -> None:
        self.webui = webui
        self.catalog = catalog
        self.settings = settings

    def make(self, page: Any, card: Card, index: int | None, enable_filter: bool = True) -> dict[str, Any] | None:
        """One item, or None for a card that the user does not want to see with the loaded model."""
        stem = str(card.path.with_suffix(""))
        terms = [page.search_terms_from_path(str(card.path)), *([card.hash] if card.hash else [])]
        item = {
            "name": card.name,
            "filename": str(card.path),
            "shorthash": card.hash[:12] or None,
            "preview": page.find_preview(stem) or _cover(page, stem, card),
            "description": page.find_description(stem),
            "search_terms": terms,
            "search_term": " ".join(terms),  # before 1.8
            "local_preview": f"{stem}.{self.webui.shared.opts.samples_format}",
            "metadata": dict(card.metadata),
            "sort_keys": {"default": index, **_sort_keys(page, card)},
            "sd_version": card.version,
        }
        page.read_user_metadata(item)
        notes = item["user_metadata"]
        if notes.get(VERSION) in VERSIONS.values():
            item["sd_version"] = notes[VERSION]
        item["prompt"], item["negative_prompt"] = _prompts(self.catalog.preferred_name(card), notes)
        return item if not enable_filter or self._shown(item["sd_version"]) else None

    def _shown(self, version: str) -> bool:
        model = self.webui.sd_models.model_data.sd_model
        loaded = next((v for v in MODELS if getattr(model, f"is_{v.lower()}", False)), None)
        if self.settings.show_all or loaded is None:
            return True
        return loaded not in self.settings.hide_unknown_for if version == UNKNOWN else version == loaded


def _cover(page: Any, stem: str, card: Card) -> Any:
    """A picture inside the file, which the webui shows since 1.9."""
    find = getattr(page, "find_embedded_preview", None)
    return find(stem, card.name, card.metadata) if find is not None else None


def _sort_keys(page: Any, card: Card) -> dict[str, Any]:
    try:
        return dict(page.get_sort_keys(str(card.path)))
    except OSError:  # deleted while the page is built
        return {}


def _prompts(name: str, notes: dict[str, Any]) -> tuple[str, str]:
    """What a click on a card adds to prompt and negative prompt, as javascript expressions."""
    prompt = f"{_quoted(f'<lora:{name}:')} + {_strength(notes)} + {_quoted('>')}"
    if notes.get(ACTIVATION):
        prompt += f" + {_quoted(' ' + str(notes[ACTIVATION]))}"
    negative = f"({notes[NEGATIVE]}:1)" if notes.get(NEGATIVE) else ""
    return prompt, _quoted(negative)


def _strength(notes: dict[str, Any]) -> str:
    """The user's number, or the setting's name. Nothing else becomes javascript: notes may come from elsewhere."""
    try:
        given = float(notes.get(WEIGHT) or 0)
    except (TypeError, ValueError):
        given = 0.0
    return f"{given:g}" if given and math.isfinite(given) else "opts.extra_networks_default_multiplier"


def _quoted(text: str) -> str:
    """A javascript string. Line ends cannot stand in one."""
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\n", "\\n").replace("\r", "") + '"'


def add_api(app: Any, catalog: Catalog) -> None:
    """`/sdapi/v1/loras` and `/sdapi/v1/refresh-loras`, unless somebody has added them to this app.

    They ask for the same password as the webui's own list of checkpoints.
    """
    present = {getattr(route, "path", ""): route for route in app.routes}
    checks = list(getattr(present.get("/sdapi/v1/sd-models"), "dependencies", ()))

    def loras() -> list[dict[str, Any]]:
        return [card.as_json() for card in catalog.cards()]

    def refresh() -> None:
        catalog.rescan()

    for path, method, answer in (("/sdapi/v1/loras", "GET", loras), ("/sdapi/v1/refresh-loras", "POST", refresh)):
        if path not in present:
            app.add_api_route(path, answer, methods=[method], dependencies=checks)
