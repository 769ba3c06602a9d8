"""Settings: our own page of them, and the built-in extension's where that is disabled, under its names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lib_lora.host.builtin import BuiltinLora
from lib_lora.host.detect import Webui

APPLY = "lorakit_apply"
NONE = "None"
OURS = ("lorakit", "LoRA kit")
THEIRS = ("extra_networks", "Extra Networks")
# key: (default, label, gradio's component or None for what fits the default, its arguments, info)
BUILTIN: dict[str, tuple[Any, str, str | None, dict[str, Any], str]] = {
    "lora_preferred_name": (
        "Alias from file",
        "When adding to prompt, refer to Lora by",
        "Radio",
        {"choices": ["Alias from file", "Filename"]},
        "",
    ),
    "lora_add_hashes_to_infotext": (True, "Add Lora hashes to infotext", None, {}, ""),
    "lora_bundled_ti_to_infotext": (
        True,
        "Add Lora name as TI hashes for bundled Textual Inversion",
        None,
        {},
        '"Add Textual Inversion hashes to infotext" needs to be enabled',
    ),
    "lora_show_all": (
        False,
        "Always show all networks on the Lora page",
        None,
        {},
        "otherwise those made for another version of Stable Diffusion than the loaded one are hidden",
    ),
    "lora_hide_unknown_for_versions": (
        [],
        "Hide networks of unknown versions for model versions",
        "CheckboxGroup",
        {"choices": ["SD1", "SD2", "SDXL"]},
        "",
    ),
    "lora_in_memory_limit": (
        0,
        "Number of Lora networks to keep cached in memory",
        "Number",
        {"precision": 0},
        "",
    ),
    "lora_not_found_warning_console": (False, "Lora not found warning in console", None, {}, ""),
    "lora_not_found_gradio_warning": (False, "Lora not found warning popup in webui", None, {}, ""),
}


class Settings:
    """What the user chose. Each is looked up when asked for: settings change between two pictures."""

    def __init__(self, webui: Webui, builtin: BuiltinLora) -> None:
        self.webui = webui
        self.builtin = builtin

    def add(self, names: Callable[[], Sequence[str]], changed: Callable[[], None]) -> None:
        """Add our settings, and those of the built-in that are missing. `names` are the networks to choose from.

        `changed` is called when the user turns our applying on or off.
        """
        shared = self.webui.shared
        apply = shared.OptionInfo(True, "Apply <lora:...> with LoRA kit", onchange=changed, section=OURS)
        apply.info("off: the webui's built-in Lora extension applies networks again, from the next picture on")
        shared.opts.add_option(APPLY, apply)
        from lib_lora.ui.compat import component

        if "sd_lora" not in shared.opts.data_labels:
            choices = lambda: {"choices": [NONE, *names()]}  # noqa: E731 - asked anew whenever the page is built
            option = shared.OptionInfo(NONE, "Add network to prompt", component("Dropdown"), choices, refresh=names)
            option.section = THEIRS
            shared.opts.add_option("sd_lora", option)
        for key, (default, label, kind, arguments, info) in BUILTIN.items():
            if key not in shared.opts.data_labels:
                option = shared.OptionInfo(default, label, component(kind) if kind else None, arguments, section=THEIRS)
                shared.opts.add_option(key, option.info(info) if info else option)

    @property
    def apply(self) -> bool:
        """Whether we are to apply networks: not if the user said so, nor if the built-in's old method is chosen."""
        return bool(self._get(APPLY, True)) and not self.functional

    @property
    def functional(self) -> bool:
        """The built-in's option to apply networks during each layer's forward, as another extension once did."""
        return bool(self._get("lora_functional", False)) and self.builtin.enabled

    @property
    def added_network(self) -> str | None:
        """The network that the user wants in every prompt."""
        name = self._get("sd_lora", NONE)
        return None if name in (NONE, "", None) else str(name)

    @property
    def default_strength(self) -> str:
        """What a card writes into the prompt, and the strength of `added_network`."""
        return str(self._get("extra_networks_default_multiplier", 1.0))

    @property
    def hashes(self) -> bool:
        """Whether infotext lists the networks' hashes."""
        return bool(self._get("lora_add_hashes_to_infotext", True))

    @property
    def embedding_hashes(self) -> bool:
        """Whether infotext names the network as the hash of an embedding that came with it."""
        return bool(self._get("lora_bundled_ti_to_infotext", True))

    @property
    def show_all(self) -> bool:
        """Whether cards of other base models are shown."""
        return bool(self._get("lora_show_all", False))

    @property
    def hide_unknown_for(self) -> Sequence[str]:
        """The versions of the loaded model for which cards of an unknown version are hidden."""
        return tuple(self._get("lora_hide_unknown_for_versions", ()) or ())

    @property
    def keep(self) -> int:
        """How many networks stay in memory after use."""
        return max(0, int(self._get("lora_in_memory_limit", 0) or 0))

    @property
    def warnings(self) -> tuple[bool, bool]:
        """Whether a missing network is told on the console, and in a popup."""
        console, popup = (f"lora_not_found_{name}" for name in ("warning_console", "gradio_warning"))
        return bool(self._get(console, False)), bool(self._get(popup, False))

    def _get(self, key: str, default: Any) -> Any:
        return getattr(self.webui.shared.opts, key, default)
