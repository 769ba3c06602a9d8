"""Other extensions that change what the tag does: we read their syntax, or make room for them."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lib_lora.errors import BadFile
from lib_lora.host.detect import Webui
from lib_lora.prompt import Presets
from lib_lora.prompt.elements import Rule, parse_rules
from lib_lora.prompt.presets import WEIGHTS_FILE

log = logging.getLogger(__name__)

LORACTL = "loractl.lib.lora_ctl_network"
BLOCK_WEIGHT = "lora_block_weight.py"
REGIONAL = "scripts.latent"
FOLDER = "lorakit"


class Neighbours:
    """sd-webui-loractl, which puts itself before the built-in's tag, sd-webui-lora-block-weight, Regional Prompter."""

    def __init__(self, webui: Webui) -> None:
        self.webui = webui
        self._told: set[str] = set()

    def owners(self) -> tuple[type, ...]:
        """Classes of tags that are the built-in's with more syntax: ours reads that, and takes their place."""
        found = getattr(sys.modules.get(LORACTL), "LoraCtlNetwork", None)
        return (found,) if found is not None else ()

    def needs_builtin(self) -> str:
        """Why the built-in must apply networks to this picture, "" if it need not.

        Regional Prompter in its latent mode sets the strengths in the built-in's list anew for each region.
        """
        if getattr(sys.modules.get(REGIONAL), "lactive", False):
            return "Regional Prompter in latent mode changes the strengths of its networks from region to region"
        return ""

    def settle(self, ours: Any) -> None:
        """Make them know whom to give the tag back to, and tell the user once who reads their syntax now."""
        for script in self._scripts():
            kind = type(script).__module__
            if type(script).__name__ == "LoraCtlScript":
                if script.original_network is None:  # switched off it would put back what it never took
                    script.original_network = ours
                self.webui.extra_networks.register_extra_network_alias(ours, "loractl")
                self._tell("sd-webui-loractl", "its strengths at steps (w@s,...) and hr=")
            elif kind == BLOCK_WEIGHT:
                self._tell("sd-webui-lora-block-weight", "its block weights, elements, start=, stop= and step=")

    def presets(self) -> Presets:
        """The usual presets, those of block-weight's files, those in its tab, and the user's own in our folder.

        The own ones are `lorakit/lbwpresets.txt` and `lorakit/elempresets.txt` in the webui's data folder.
        """
        folders = [Path(e.path) / "scripts" for e in self.webui.extensions.extensions]
        places = [folder for folder in folders if (folder / WEIGHTS_FILE).is_file()]
        own = Path(self.webui.paths.data_path) / FOLDER
        try:
            found = Presets.load(*places, *([own] if own.is_dir() else []))
        except BadFile as error:
            log.warning("%s", error)
            found = Presets()
        for line in found.skipped:
            self.say_once(f"left out of the presets: {line}")
        for script in self._scripts():
            if type(script).__module__ == BLOCK_WEIGHT:
                found = _with_tab(found, getattr(script, "lratios", {}), getattr(script, "elementals", {}))
        return found

    def _scripts(self) -> Iterator[Any]:
        for runner in (self.webui.scripts.scripts_txt2img, self.webui.scripts.scripts_img2img):
            yield from getattr(runner, "alwayson_scripts", ())

    def _tell(self, extension: str, syntax: str) -> None:
        self.say_once(f"{extension} is loaded as well: LoRA kit itself reads {syntax}; you do not need both")

    def say_once(self, message: str) -> None:
        """A warning on the console, if it is a new one."""
        if message not in self._told:
            self._told.add(message)
            log.warning("%s", message)


def _with_tab(presets: Presets, weights: Mapping[str, str], elements: Mapping[str, str]) -> Presets:
    """`presets` and what the tab of block-weight holds for this picture: its own plots change that."""
    rules: dict[str, tuple[Rule, ...]] = {}
    for name, text in elements.items():
        try:
            rules[name] = parse_rules(text)
        except ValueError as error:
            log.info("element preset %s: %s", name, error)
    vectors = {name: vector.strip() for name, vector in weights.items()}
    return dataclasses.replace(presets, weights={**presets.weights, **vectors}, elements={**presets.elements, **rules})
