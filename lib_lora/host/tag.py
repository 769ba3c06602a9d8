"""What owns `<lora:...>` in the webui: an extra network by duck typing, activated for every batch of pictures."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Sequence
from typing import Any

from lib_lora.errors import LoraError, WrongBaseModel
from lib_lora.files.folders import Entry
from lib_lora.host import infotext, sampling
from lib_lora.host.builtin import TAG
from lib_lora.host.catalog import Catalog
from lib_lora.host.embeddings import BundledEmbeddings
from lib_lora.host.neighbours import Neighbours
from lib_lora.host.options import Settings
from lib_lora.host.passes import Pass, Passes
from lib_lora.host.texts import CachedTexts
from lib_lora.host.webui import WebuiHost
from lib_lora.patch.report import NetworkReport, PatchReport
from lib_lora.prompt import Moment, NetworkRequest, parse_arguments
from lib_lora.runtime import Runtime

log = logging.getLogger(__name__)

LAYERS = "LoRA layers"


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
        self.texts = CachedTexts(host.webui)
        self._passes = Passes()
        self._lent: Any = None  # the built-in's tag while it serves a picture for us
        self._files: dict[str, Entry] = {}  # the networks last applied, by the names they were asked for with
        self._lock = threading.RLock()  # round changing weights: scripts may be unloaded while a picture is drawn
        self.closed = False

    def activate(self, p: Any, params_list: Sequence[Any]) -> None:
        """Make the model carry exactly the networks of `params_list`, none if it is empty."""
        self._passes.end(p)
        self._lent = None
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
        self.finish(p)
        if self._lent is not None:
            self._lent.deactivate(p)

    def restore(self) -> None:
        """Original weights, now, and nothing left with the webui."""
        self._passes.clear()
        with self._lock:
            self.runtime.deactivate()
        self.embeddings.hide()
        self.host.builtin.publish(())

    def close(self) -> None:
        """Original weights for good: whoever comes next takes what is in the model for them."""
        with self._lock:
            self.closed = True
            self.restore()

    def leave_alone(self, p: Any) -> None:
        """The webui will activate nothing for this picture: it gets no networks, or those of the one that it is in."""
        if not self._passes.others(p):
            self.restore()
            self.texts.use(p, object())

    def finish(self, p: Any) -> None:
        """This picture is not being drawn any more."""
        self._passes.end(p)

    def step(self, params: Any) -> None:
        """Before each call of the denoiser: strengths that change over the steps, a model or networks in place of ours.

        The refiner takes the model's place in mid-picture. If its checkpoint must be loaded, the webui encodes an
        empty text with it and activates no networks for that; nothing else is activated, and the texts are encoded.
        Another picture may have been drawn inside this one.
        """
        now = self._passes.drawn(params)
        if now is None or not (now.requests or self.runtime.active):
            return
        p = now.p
        try:
            denoiser, model = sampling.denoiser_of(params, p), self.host.patchable()
            if not self._passes.is_ready(now, model.base_identity()):
                self._apply(p, now, model)
                p.setup_conds()
                denoiser.update_inner_model()
                sampling.renew_texts(self.host.webui, params, denoiser)
            if now.scheduled:
                moment = sampling.moment(params, denoiser, now.start.hires)
                with self._lock:
                    changed = self.runtime.advance(model, moment) is not None
                if changed:
                    self._publish(now, moment)
        except Exception as error:
            self._failed(p, error)

    def _begin(self, p: Any, params_list: Sequence[Any], model: Any) -> None:
        requests = self._requests(p, params_list)
        now = Pass.of(p, requests, sampling.in_hires_pass(p, params_list))
        self._passes.begin(now)
        self.runtime.keep = self.settings.keep
        report = self._apply(p, now, model)
        for line in filter(None, report.summary().splitlines()):
            self._tell(p, line)
        self._warn(requests)
        self._write_infotext(p, requests, report)

    def _apply(self, p: Any, now: Pass, model: Any) -> PatchReport:
        with self._lock:
            if self.closed:
                raise LoraError("the extensions were loaded anew while this picture was drawn; draw it again")
            report = self.runtime.activate(model, now.requests, now.start, now.seed)
        self._passes.ready(now, model.base_identity())
        self._files = self._found(now.requests)
        working = [request for request in now.requests if _works(request)]
        made_with = [(r, self._files.get(r.name), r.strengths(now.start, now.seed)) for r in working]
        self.texts.use(p, (model.base_identity(), *made_with))
        told = self.embeddings.show(self.runtime.active, self.host.webui.shared.sd_model)
        self._publish(now, now.start)
        return dataclasses.replace(report, errors=(*report.errors, *told))

    def _requests(self, p: Any, params_list: Sequence[Any]) -> list[NetworkRequest]:
        items = [[str(item) for item in params.items] for params in params_list]
        added = self.settings.added_network if p.all_prompts else None  # none: the empty text of a new checkpoint
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
                self._tell(p, str(error))
        return requests

    def _hand_over(self, p: Any, params_list: Sequence[Any], why: str) -> None:
        """Let the built-in serve this picture: the user wishes it, or `why` tells what we do not know of the model.

        The webui goes on to call every owner of a tag that it did not call yet, with no networks: so the tag stays
        ours, and the built-in is called from here.
        """
        self.restore()
        self.texts.use(p, object())
        theirs = self.host.builtin.tag
        if why and params_list:
            who = "no network was applied" if theirs is None else "networks were applied by the webui's own extension"
            self._tell(p, f"{who}: {why}")
        if theirs is not None:
            self.host.builtin.lend()
            self._lent = theirs
            theirs.activate(p, list(params_list))

    def _failed(self, p: Any, error: Exception) -> None:
        self.restore()  # ends the pass as well: to be told once is enough
        self.texts.use(p, object())
        self._tell(p, f"no network was applied: {error}")
        if not isinstance(error, LoraError):
            log.exception("applying networks failed")

    def _tell(self, p: Any, message: str) -> None:
        p.comment(self.host.for_the_page(message))

    def _publish(self, now: Pass, moment: Moment) -> None:
        """Keep the built-in's list of loaded networks truthful."""
        if not self.host.builtin.released:
            return
        active = {network.name for network in self.runtime.active}
        loaded = []
        for request in now.requests:
            if request.name in active and request.name in self._files and _works(request):
                strengths, entry = request.strengths(moment, now.seed), self._files[request.name]
                loaded.append(self.host.builtin.stand_in(request.name, entry.path))
                loaded[-1].te_multiplier, loaded[-1].unet_multiplier = strengths.te, strengths.unet
                loaded[-1].dyn_dim, loaded[-1].mtime = request.dyn, entry.mtime / 1e9
        self.host.builtin.publish(loaded)

    def _warn(self, requests: Sequence[NetworkRequest]) -> None:
        """As the built-in's settings ask for networks that are not there; the comment is written in any case."""
        console, popup = self.settings.warnings
        missing = [request.name for request in requests if request.name not in self._files]
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

    def _found(self, requests: Sequence[NetworkRequest]) -> dict[str, Entry]:
        """What names mean at the moment: a file's time and size change when it is trained again."""
        found = {}
        for name in {request.name for request in requests}:
            try:
                found[name] = self.runtime.library.find(name)
            except LoraError:  # it is in the report
                continue
        return found


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
