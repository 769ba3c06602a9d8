"""From the tags of a prompt to patched weights: find the files, read them, hand them to the patcher."""

from __future__ import annotations

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from lib_lora.errors import LoraError, WrongBaseModel
from lib_lora.files.codec import base_versions, read_network
from lib_lora.files.library import NetworkLibrary
from lib_lora.keys import versions
from lib_lora.keys.embeddings import CLIP_G, CLIP_L
from lib_lora.keys.layer_key import TE1, TE2
from lib_lora.networks.network import Network
from lib_lora.patch.patcher import Patcher
from lib_lora.patch.plan import FileState, Loaded, Source
from lib_lora.patch.report import PatchReport
from lib_lora.ports import DiffusionModel, Patchable
from lib_lora.prompt import Moment, NetworkRequest

log = logging.getLogger(__name__)
OnStep = Callable[[int, int], None]
ENCODERS = {CLIP_L: TE1, CLIP_G: TE2}  # of bundled embeddings, and of models


@dataclass(frozen=True)
class _Wanted:
    """A request, the state of its file when it was activated, and the seed of the picture."""

    request: NetworkRequest
    file: FileState
    seed: int

    def source(self, moment: Moment) -> Source:
        return Source(self.file, self.request.strengths(moment, self.seed), self.request.dyn)


class Runtime:
    """Applies requests to a model. `keep` networks stay in memory after use, the latest used ones.

    While the strengths of a picture change from step to step its networks stay, however many they are.
    """

    def __init__(self, library: NetworkLibrary, patcher: Patcher | None = None, keep: int = 2) -> None:
        self.library = library
        self.patcher = patcher if patcher is not None else Patcher()
        self.keep = keep
        self._cache: OrderedDict[FileState, Network] = OrderedDict()
        self._bad: dict[FileState, str] = {}  # files of the last request that cannot be used, and why
        self._version = ""  # of the model that `_bad` was decided for
        self._scheduled: tuple[_Wanted, ...] = ()  # what `advance` follows; empty if nothing changes over the steps
        self._sources: tuple[Source, ...] = ()  # what `advance` applied last
        self._errors: tuple[str, ...] = ()  # of the last `activate`
        self.active: tuple[Network, ...] = ()  # what is applied, without its layers: for metadata and embeddings

    def activate(
        self,
        model: Patchable,
        requests: Iterable[NetworkRequest],
        moment: Moment = Moment(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> PatchReport:
        """Make the model's weights pristine + `requests` at `moment`, replacing whatever was applied.

        The same network asked for twice adds up. A name without a file, a file that cannot be read or one for another
        base model becomes a message in `report.errors`; the rest is applied. An unchanged request costs a look at
        the files' times. `seed` decides random block weights: give the picture's, or that of a batch's first.
        """
        if model.version != self._version:
            self._bad, self._version = {}, model.version
        self._scheduled = ()  # whatever happens now, the last picture's strengths are not followed any more
        errors, wanted = self._find(requests, moment, seed)
        self._bad = {state: why for state, why in self._bad.items() if any(w.file == state for w in wanted)}
        readable = [w for w in wanted if w.file not in self._bad]
        scheduled = any(w.request.scheduled for w in readable)
        report = self.patcher.current(model, [w.source(moment) for w in readable])
        if report is None or scheduled:
            readable, loads = self._load(readable, moment)
            self.active = ()  # should applying fail
            report = self.patcher.apply(model, loads)
            self.active = tuple(dataclasses.replace(load.network, layers={}) for load in loads)
        self._follow(readable if scheduled else (), moment)
        errors += [why for state, why in self._bad.items() if any(w.file == state for w in wanted)]
        for message in errors:
            log.info("%s", message)  # whoever asked tells the user
        self._errors = tuple(dict.fromkeys(errors))
        return dataclasses.replace(report, errors=self._errors)

    def advance(self, model: Patchable, moment: Moment) -> PatchReport | None:
        """Bring the strengths of the activated requests to another moment of the same picture.

        None, at once, if nothing changes: call it before every step. The files are those of `activate`, even if they
        were overwritten since. A model of another kind than the activated one is left alone.
        """
        if not self._scheduled or model.version != self._version:
            return None
        sources = tuple(wanted.source(moment) for wanted in self._scheduled)
        if sources == self._sources:
            return None
        loads = [self._loaded(wanted, source) for wanted, source in zip(self._scheduled, sources)]
        report = self.patcher.apply(model, loads)
        self._sources = sources
        return dataclasses.replace(report, errors=self._errors)

    def stepper(self, model: Patchable, then: OnStep | None = None) -> OnStep:
        """For samplers that call `on_step(done, steps)` after each step: advances to the next, then calls `then`."""

        def on_step(done: int, steps: int) -> None:
            if done < steps:
                self.advance(model, Moment(done, steps))
            if then is not None:
                then(done, steps)

        return on_step

    def words(self, model: DiffusionModel) -> AbstractContextManager[None]:
        """While open, words whose embeddings the networks of the last `activate` bring along are read as these.

        Raises BadConfig or ShapeMismatch for vectors that the model cannot read.
        """
        found = {
            token: {ENCODERS[encoder]: torch.atleast_2d(vectors.float()) for encoder, vectors in tensors.items()}
            for network in self.active
            for token, tensors in network.embeddings.items()
        }
        return model.extra_tokens(found) if found else nullcontext()

    def deactivate(self) -> None:
        """Put the original weights back. The latest `keep` networks stay in memory."""
        self.patcher.restore()
        self.active = ()
        self._follow((), Moment())

    def forget(self) -> None:
        """Put the original weights back and free the memory of every network."""
        self.deactivate()
        self._cache.clear()
        self._bad = {}

    def _find(self, requests: Iterable[NetworkRequest], moment: Moment, seed: int) -> tuple[list[str], list[_Wanted]]:
        errors: list[str] = []
        found: list[_Wanted] = []
        for request in requests:
            try:
                entry = self.library.find(request.name)
                wanted = _Wanted(request, (entry.path, *entry.stamp), seed)
                wanted.source(moment)
            except LoraError as error:
                errors.append(str(error))
            else:
                found.append(wanted)
        return errors, found

    def _load(self, wanted: Sequence[_Wanted], moment: Moment) -> tuple[list[_Wanted], list[Loaded]]:
        """Those whose files can be used, and their networks; the others are noted in `_bad`."""
        usable: list[_Wanted] = []
        loads: list[Loaded] = []
        for one in wanted:
            if one.file in self._bad:
                continue
            try:
                network = self._cache.get(one.file) or read_network(one.file[0])
                self._require_version(network, one.request.name)
            except LoraError as error:
                self._bad[one.file] = str(error)
                continue
            self._cache[one.file] = network
            self._cache.move_to_end(one.file)
            usable.append(one)
            loads.append(self._loaded(one, one.source(moment)))
        return usable, loads

    def _loaded(self, wanted: _Wanted, source: Source) -> Loaded:
        return Loaded(dataclasses.replace(self._cache[wanted.file], name=wanted.request.name), source)

    def _follow(self, wanted: Sequence[_Wanted], moment: Moment) -> None:
        """From now on these change over the steps; what is in memory beyond them and the latest `keep` goes."""
        self._scheduled = tuple(wanted)
        self._sources = tuple(one.source(moment) for one in wanted)
        held = {one.file for one in wanted}
        spare = [state for state in self._cache if state not in held]
        for state in spare[: max(len(self._cache) - max(self.keep, len(held)), 0)]:
            del self._cache[state]

    def _require_version(self, network: Network, name: str) -> None:
        fitting = base_versions(network)
        if fitting and self._version not in fitting:
            made_for = fitting[0]
            raise WrongBaseModel(
                f"{name!r} is made for {versions.title(made_for)}, the loaded model is "
                f"{versions.title(self._version)}; load such a checkpoint or remove the tag"
            )
