"""What owns `<lora:...>` in the webui: an extra network by duck typing, activated for every batch of pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from lib_lora.errors import LoraError, WrongBaseModel
from lib_lora.host.builtin import TAG
from lib_lora.host.webui import WebuiHost
from lib_lora.patch.report import NetworkReport
from lib_lora.prompt import NetworkRequest, parse_arguments
from lib_lora.runtime import Runtime

log = logging.getLogger(__name__)

CACHES = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")
CUT = str.maketrans("", "", ":,")  # signs that infotext's list of hashes is divided by


class LoraTag:
    """The webui's extra network called `lora`. Whatever goes wrong is told to the user as a comment of the picture."""

    name = TAG
    is_lorakit = True  # how a later copy of this class, after a UI reload, recognises an earlier one

    def __init__(self, host: WebuiHost, runtime: Runtime) -> None:
        self.host = host
        self.runtime = runtime
        self._applied: object = ()

    def activate(self, p: Any, params_list: Sequence[Any]) -> None:
        """Make the model carry exactly the networks of `params_list`, none if it is empty."""
        try:
            model = self.host.model()
        except WrongBaseModel as error:
            self._hand_over(p, params_list, error)
            return
        requests: list[NetworkRequest] = []
        try:
            requests = self._requests(p, params_list)
            report = self.runtime.activate(model, requests)
            for line in filter(None, report.summary().splitlines()):
                p.comment(line)
            if report.networks:
                p.extra_generation_params["LoRA layers"] = "; ".join(map(_counts, report.networks))
            self._add_hashes(p, requests)
        except Exception as error:  # the webui would swallow it: the user would see a picture without the network
            self.runtime.deactivate()
            p.comment(f"no network was applied: {error}")
            if not isinstance(error, LoraError):
                log.exception("applying networks failed")
        self._drop_stale_texts(p, (model.base_identity(), *map(self._file_of, requests)))

    def deactivate(self, p: Any) -> None:
        """Nothing to do: the next picture's `activate` decides what the model carries."""

    def restore(self) -> None:
        """Original weights, now."""
        self.runtime.deactivate()

    def _requests(self, p: Any, params_list: Sequence[Any]) -> list[NetworkRequest]:
        items = [[str(item) for item in params.items] for params in params_list]
        options = self.host.webui.shared.opts
        extra = getattr(options, "sd_lora", "None")  # the built-in's setting "Add network to prompt"
        if extra not in ("None", "", None) and not any(words[:1] == [extra] for words in items):
            strength = str(getattr(options, "extra_networks_default_multiplier", 1))
            p.all_prompts = [f"{prompt}<lora:{extra}:{strength}>" for prompt in p.all_prompts]
            items.append([extra, strength])
        requests = []
        for words in items:
            try:
                requests.append(parse_arguments(words))
            except LoraError as error:
                p.comment(f"<lora:{':'.join(words)}> is left out: {error}")
        return requests

    def _hand_over(self, p: Any, params_list: Sequence[Any], error: WrongBaseModel) -> None:
        """Let the built-in serve a model that we do not know; the tag is taken again before the next picture."""
        self.runtime.deactivate()
        theirs = self.host.builtin.tag
        if theirs is None:
            if params_list:
                p.comment(f"no network was applied: {error}")
            return
        if params_list:
            p.comment(f"networks were applied by the webui's own Lora extension: {error}")
        self.host.builtin.give_back()
        theirs.activate(p, list(params_list))

    def _add_hashes(self, p: Any, requests: Sequence[NetworkRequest]) -> None:
        """`Lora hashes` in infotext as the built-in writes them: pasting finds renamed files by them."""
        if not getattr(self.host.webui.shared.opts, "lora_add_hashes_to_infotext", True):
            return
        if not getattr(p, "is_hr_pass", False) or not hasattr(p, "lora_hashes"):
            p.lora_hashes = {}
        for request in requests:
            digest = self.host.builtin.short_hash(request.name)
            if digest:
                p.lora_hashes[request.name.translate(CUT)] = digest
        if p.lora_hashes:
            p.extra_generation_params["Lora hashes"] = ", ".join(f"{k}: {v}" for k, v in p.lora_hashes.items())

    def _file_of(self, request: NetworkRequest) -> object:
        """What a request means at the moment: its file's time and size change when it is trained again."""
        try:
            return request, self.runtime.library.find(request.name)
        except LoraError:
            return request, None

    def _drop_stale_texts(self, p: Any, applied: object) -> None:
        """Forget cached text states if networks changed: the webui's key has the tag, not the file's content."""
        if applied == self._applied:
            return
        self._applied = applied
        for name in CACHES:
            cache = getattr(p, name, None)
            if isinstance(cache, list) and cache:
                cache[0] = None


def _counts(network: NetworkReport) -> str:
    """Infotext's short form of a report: the comment has the names."""
    total = network.applied + len(network.unmatched) + len(network.mismatched)
    return f"{network.name} {network.applied} of {total}"
