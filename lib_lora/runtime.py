"""From the tags of a prompt to patched weights: find the files, read them, hand them to the patcher."""

from __future__ import annotations

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from lib_lora.errors import LoraError, WrongBaseModel
from lib_lora.files.codec import base_version, read_network
from lib_lora.files.library import NetworkLibrary
from lib_lora.keys import versions
from lib_lora.networks.network import Network
from lib_lora.patch.patcher import Patcher
from lib_lora.patch.plan import FileState, Loaded, Source
from lib_lora.patch.report import PatchReport
from lib_lora.ports import Patchable
from lib_lora.prompt import Moment, NetworkRequest

log = logging.getLogger(__name__)


class Runtime:
    """Applies requests to a model. `keep` networks stay in memory after use, the latest used ones."""

    def __init__(self, library: NetworkLibrary, patcher: Patcher | None = None, keep: int = 2) -> None:
        self.library = library
        self.patcher = patcher if patcher is not None else Patcher()
        self.keep = keep
        self._cache: OrderedDict[FileState, Network] = OrderedDict()
        self._bad: dict[FileState, str] = {}  # files of the last request that cannot be used, and why
        self._version = ""  # of the model that `_bad` was decided for

    def activate(
        self,
        model: Patchable,
        requests: Iterable[NetworkRequest],
        moment: Moment = Moment(),  # noqa: B008 - frozen
    ) -> PatchReport:
        """Make the model's weights pristine + `requests`, replacing whatever was applied.

        The same network asked for twice adds up. A name without a file, a file that cannot be read or one for another
        base model becomes a message in `report.errors`; the rest is applied. An unchanged request costs a look at
        the files' times.
        """
        if model.version != self._version:
            self._bad, self._version = {}, model.version
        errors: list[str] = []
        named: list[tuple[str, Source]] = []
        for request in requests:
            try:
                entry = self.library.find(request.name)
            except LoraError as error:
                errors.append(str(error))
                continue
            source = Source((entry.path, *entry.stamp), request.strengths(moment), request.dyn)
            named.append((request.name, source))
        self._bad = {state: why for state, why in self._bad.items() if any(s.file == state for _, s in named)}
        readable = [(name, source) for name, source in named if source.file not in self._bad]
        report = self.patcher.current(model, [source for _, source in readable])
        if report is None:
            report = self.patcher.apply(model, self._load(readable))
        errors += [why for state, why in self._bad.items() if any(s.file == state for _, s in named)]
        for message in errors:
            log.info("%s", message)  # whoever asked tells the user
        return dataclasses.replace(report, errors=tuple(dict.fromkeys(errors)))

    def deactivate(self) -> None:
        """Put the original weights back. Networks stay in the cache."""
        self.patcher.restore()

    def _load(self, wanted: Sequence[tuple[str, Source]]) -> list[Loaded]:
        loads = []
        for name, source in wanted:
            if source.file in self._bad:
                continue
            try:
                network = self._cache.get(source.file) or read_network(source.path)
                self._require_version(network, name)
            except LoraError as error:
                self._bad[source.file] = str(error)
                continue
            self._cache[source.file] = network
            self._cache.move_to_end(source.file)
            loads.append(Loaded(dataclasses.replace(network, name=name), source))
        while len(self._cache) > self.keep:
            self._cache.popitem(last=False)
        return loads

    def _require_version(self, network: Network, name: str) -> None:
        made_for = base_version(network)
        if made_for not in (self._version, versions.UNKNOWN):
            raise WrongBaseModel(
                f"{name!r} is made for {versions.title(made_for)}, the loaded model is "
                f"{versions.title(self._version)}; load such a checkpoint or remove the tag"
            )
