"""What owns `<lora:...>` in the webui: an extra network by duck typing, activated for every batch of pictures."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lib_lora.errors import LoraError, WrongBaseModel
from lib_lora.host import infotext, sampling
from lib_lora.host.builtin import TAG
from lib_lora.host.catalog import Catalog
from lib_lora.host.embeddings import BundledEmbeddings
from lib_lora.host.neighbours import Neighbours
from lib_lora.host.options import Settings
from lib_lora.host.webui import WebuiHost
from lib_lora.patch.report import NetworkReport, PatchReport
from lib_lora.prompt import Moment, NetworkRequest, parse_arguments
from lib_lora.runtime import Runtime

log = logging.getLogger(__name__)

CACHES = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")
LAYERS = "LoRA layers"


@dataclass(frozen=True)
class _Pass:
    """The sampling pass that goes on: its picture, model, requests, first moment and seed."""

    p: Any
    model: Any
    requests: tuple[NetworkRequest, ...]
    start: Moment
    seed: int

    @property
    def scheduled(self) -> bool:
        return any(request.scheduled for request in self.requests)


class LoraTag:
    """The webui's extra network called `lora`. Whatever goes wrong is told to the user as a comment of the picture."""

    name = TAG
    is_lorakit = True  # how a later copy of this class, after a UI reload, recognises an earlier one

    def __init__(self, host: WebuiHost, runtime: Runtime, catalog: Catalog) -> None:
        self.host = host
        self.runtime = runtime
        self.catalog = catalog
        self.settings = Settings(host.webui, host.builtin)
        self.neighbours = Neighbours(host.webui)
        self.embeddings = BundledEmbeddings(host.webui, lambda: self.settings.embedding_hashes)
        self._pass: _Pass | None = None
        self._interrupted: _Pass | None = None  # by somebody who activated networks for something else
        self._lent: Any = None  # the built-in's tag while it serves a picture for us
        self._texts: object = ()  # what the cached text states were made with

    def activate(self, p: Any, params_list: Sequence[Any]) -> None:
        """Make the model carry exactly the networks of `params_list`, none if it is empty."""
        self._interrupted = self._interrupted or self._pass
        if self._interrupted is not None and self._interrupted.p is p:
            self._interrupted = None
        self._pass = self._lent = None
        try:
            why = self.neighbours.needs_builtin()
            if why or not self.settings.apply:
                self._hand_over(p, params_list, why)
                return
            try:
                model = self.host.patchable()
            except WrongBaseModel as error:
                self._hand_over(p, params_list, str(error))
                return
            self.host.builtin.release()
            self._begin(p, params_list, model)
        except Exception as error:  # the webui would swallow it: the user would see a picture without the network
            self._failed(p, error)

    def deactivate(self, p: Any) -> None:
        """The pictures are done. The next one's `activate` decides what the model carries."""
        self.finish()
        if self._lent is not None:
            self._lent.deactivate(p)

    def restore(self) -> None:
        """Original weights, now, and nothing left with the webui."""
        self.finish()
        self.runtime.deactivate()
        self.embeddings.hide()
        self.host.builtin.publish(())

    def forget_texts(self) -> None:
        """Let the next picture encode its texts anew: somebody else applied networks meanwhile."""
        self._texts = object()

    def finish(self) -> None:
        """No picture is being drawn now."""
        self._pass = self._interrupted = None

    def step(self, params: Any) -> None:
        """Before each call of the denoiser: strengths that change over the steps, and a model that was swapped.

        The refiner takes the model's place in mid-picture. If its checkpoint must be loaded, the webui encodes an
        empty text with it and activates no networks for that; nothing else is activated, and the texts are encoded.
        """
        passes = [one for one in (self._pass, self._interrupted) if one is not None]
        now = next((one for one in passes if sampling.is_drawn(one.p, params)), None)
        if now is None or not now.requests:
            return
        try:
            denoiser, model = sampling.denoiser_of(params, now.p), self.host.patchable()
            if now is not self._pass or model is not now.model:
                self._interrupted, self._pass = None, dataclasses.replace(now, model=model)
                self._apply(self._pass)
                now.p.setup_conds()
                denoiser.update_inner_model()
                sampling.renew_texts(self.host.webui, params, denoiser)
            if now.scheduled:
                moment = sampling.moment(params, denoiser, now.start.hires)
                if self.runtime.advance(model, moment) is not None:
                    self._publish(now, moment)
        except Exception as error:
            self._failed(now.p, error)

    def _begin(self, p: Any, params_list: Sequence[Any], model: Any) -> None:
        requests = tuple(self._requests(p, params_list))
        hires = sampling.in_hires_pass(p, params_list, self.name)
        seed = int((getattr(p, "seeds", None) or [0])[0])
        self._pass = _Pass(p, model, requests, sampling.start_of(p, hires), seed)
        self.runtime.keep = self.settings.keep
        report = self._apply(self._pass)
        for line in filter(None, report.summary().splitlines()):
            p.comment(line)
        self._warn(requests)
        self._write_infotext(p, requests, report)

    def _apply(self, now: _Pass) -> PatchReport:
        report = self.runtime.activate(now.model, now.requests, now.start, now.seed)
        made_with = [(*self._file_of(r), r.strengths(now.start, now.seed)) for r in now.requests if _works(r)]
        self._drop_stale_texts(now.p, (now.model.base_identity(), *made_with))
        told = self.embeddings.show(self.runtime.active, self.host.webui.shared.sd_model)
        self._publish(now, now.start)
        return dataclasses.replace(report, errors=(*report.errors, *told))

    def _requests(self, p: Any, params_list: Sequence[Any]) -> list[NetworkRequest]:
        items = [[str(item) for item in params.items] for params in params_list]
        added = self.settings.added_network
        if added is not None and not any(words[:1] == [added] for words in items):
            strength, known = self.settings.default_strength, f"<{TAG}:{added}:"
            p.all_prompts = [text if known in text else f"{text}{known}{strength}>" for text in p.all_prompts]
            items.append([added, strength])
        requests = []
        presets = self.neighbours.presets() if items else None
        for words in items:
            try:
                requests.append(parse_arguments(words, presets))
            except LoraError as error:
                p.comment(str(error))
        return requests

    def _hand_over(self, p: Any, params_list: Sequence[Any], why: str) -> None:
        """Let the built-in serve this picture: the user wishes it, or `why` tells what we do not know of the model.

        The webui goes on to call every owner of a tag that it did not call yet, with no networks: so the tag stays
        ours, and the built-in is called from here.
        """
        self.restore()
        self._drop_stale_texts(p, object())
        theirs = self.host.builtin.tag
        if why and params_list:
            who = "no network was applied" if theirs is None else "networks were applied by the webui's own extension"
            p.comment(f"{who}: {why}")
        if theirs is not None:
            self.host.builtin.lend()
            self._lent = theirs
            theirs.activate(p, list(params_list))

    def _failed(self, p: Any, error: Exception) -> None:
        self.restore()  # ends the pass as well: to be told once is enough
        self._drop_stale_texts(p, object())
        p.comment(f"no network was applied: {error}")
        if not isinstance(error, LoraError):
            log.exception("applying networks failed")

    def _publish(self, now: _Pass, moment: Moment) -> None:
        """Keep the built-in's list of loaded networks truthful."""
        if not self.host.builtin.released:
            return
        active = {network.name for network in self.runtime.active}
        loaded = []
        for request in now.requests:
            if request.name in active and _works(request):
                strengths, entry = request.strengths(moment, now.seed), self.runtime.library.find(request.name)
                loaded.append(self.host.builtin.stand_in(request.name, entry.path))
                loaded[-1].te_multiplier, loaded[-1].unet_multiplier = strengths.te, strengths.unet
                loaded[-1].dyn_dim, loaded[-1].mtime = request.dyn, entry.mtime / 1e9
        self.host.builtin.publish(loaded)

    def _warn(self, requests: Sequence[NetworkRequest]) -> None:
        """As the built-in's settings ask for networks that are not there; the comment is written in any case."""
        console, popup = self.settings.warnings
        missing = [request.name for request in requests if self._file_of(request)[1] is None]
        if not missing or not (console or popup):
            return
        message = f"Lora not found: {', '.join(missing)}"
        if console:
            log.warning("%s", message)
        if popup:
            from lib_lora.ui.compat import popup as show

            show(message)

    def _write_infotext(self, p: Any, requests: Sequence[NetworkRequest], report: PatchReport) -> None:
        if self.settings.hashes:
            infotext.add_hashes(p, [request.name for request in requests], self.catalog.short_hash)
        if report.networks:
            p.extra_generation_params[LAYERS] = "; ".join(map(_counts, report.networks))
        elif not getattr(p, "is_hr_pass", False):
            p.extra_generation_params.pop(LAYERS, None)  # of the batch before

    def _file_of(self, request: NetworkRequest) -> tuple[NetworkRequest, object]:
        """What a request means at the moment: its file's time and size change when it is trained again."""
        try:
            return request, self.runtime.library.find(request.name)
        except LoraError:
            return request, None

    def _drop_stale_texts(self, p: Any, made_with: object) -> None:
        """Forget cached text states if networks changed: the webui's key has the tag, not the file's content."""
        if made_with == self._texts:
            return
        self._texts = made_with
        for name in CACHES:
            cache = getattr(p, name, None)
            if isinstance(cache, list) and cache:
                cache[0] = None


def _works(request: NetworkRequest) -> bool:
    try:
        request.strengths()
    except LoraError:  # it is in the report
        return False
    return True


def _counts(network: NetworkReport) -> str:
    """Infotext's short form of a report: the comment has the names."""
    total = network.applied + len(network.unmatched) + len(network.mismatched)
    return f"{network.name} {network.applied} of {total}"
