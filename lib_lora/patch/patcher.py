"""The one patcher: merges networks into a live model's weights and takes them out again, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch
from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.networks.network import Network
from lib_lora.patch.merge import Share, merged
from lib_lora.patch.pristine import Pristine
from lib_lora.patch.report import NetworkReport, PatchReport
from lib_lora.patch.targets import Target, weight_of, writing
from lib_lora.ports import DiffusionModel


@dataclass(frozen=True)
class Source:
    """Which file, in which state, at which strengths: what decides whether weights must be merged anew."""

    path: Path
    mtime_ns: int
    size: int
    te: float = 1.0
    unet: float = 1.0
    dyn: int | None = None
    changed_ns: int = 0

    @property
    def file(self) -> tuple[Path, int, int, int]:
        """What tells one state of a file from another."""
        return self.path, self.mtime_ns, self.size, self.changed_ns

    def strength(self, part: str) -> float:
        """The strength for the UNet, or for any of the text encoders."""
        return self.unet if part == UNET else self.te


@dataclass(frozen=True)
class Loaded:
    """A network read from its file."""

    network: Network
    source: Source


Signature = tuple[tuple[object, ...], ...]


@dataclass(frozen=True)
class _Done:
    """What a weight holds now: who gave to it, which of those did not fit (position -> why), whether it is changed."""

    signature: Signature
    misfits: Mapping[int, str]
    changed: bool


class Patcher:
    """Keeps one model's weights equal to pristine + the networks last asked for.

    A context manager: leaving it restores. Not thread-safe; the host calls it from where it samples.
    """

    def __init__(self) -> None:
        self.pristine = Pristine()
        self._identity: str | None = None
        self._sources: tuple[Source, ...] = ()
        self._report = PatchReport()
        self._done: dict[LayerKey, _Done] = {}

    def current(self, model: DiffusionModel, sources: Sequence[Source]) -> PatchReport | None:
        """The last report if exactly this is applied to exactly these weights already, else None."""
        if self._identity != model.base_identity() or self._sources != tuple(sources):
            return None
        modules = model.modules_by_key()
        intact = all(key in modules and self._holds(modules[key], done) for key, done in self._done.items())
        return self._report if intact else None

    def apply(self, model: DiffusionModel, loads: Sequence[Loaded]) -> PatchReport:
        """Make the weights pristine + `loads`, whatever was applied before. An empty `loads` restores.

        Layers the model lacks or that do not fit are reported and cost nothing else. On any other error everything
        is restored and the error raised.
        """
        sources = tuple(load.source for load in loads)
        unchanged = self.current(model, sources)
        if unchanged is not None:
            return unchanged
        try:
            with torch.no_grad():
                self._report = self._apply(model, loads)
        except BaseException:
            self.restore()
            raise
        self._identity, self._sources = model.base_identity(), sources
        return self._report

    def restore(self) -> None:
        """Put every original weight back and free the copies. Weights replaced by others meanwhile are left alone."""
        with torch.no_grad():
            for module, name in self.pristine:
                self.pristine.put_back(module, name)
        self._forget()

    @contextmanager
    def applied(self, model: DiffusionModel, loads: Sequence[Loaded]) -> Iterator[PatchReport]:
        """`apply` for the length of a `with` block."""
        try:
            yield self.apply(model, loads)
        finally:
            self.restore()

    def __enter__(self) -> Patcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def _forget(self) -> None:
        self._identity, self._sources, self._report, self._done = None, (), PatchReport(), {}

    def _holds(self, module: nn.Module, done: _Done) -> bool:
        return not done.changed or self.pristine.holds(Target(module))

    def _apply(self, model: DiffusionModel, loads: Sequence[Loaded]) -> PatchReport:
        modules = model.modules_by_key()
        self._leave_other_models(model.base_identity(), modules)
        shares: dict[LayerKey, list[tuple[int, Share]]] = {}
        unmatched: list[list[str]] = [list(load.network.unknown) for load in loads]
        for i, load in enumerate(loads):
            for key, layer in load.network.layers.items():
                if key not in modules or weight_of(modules[key]) is None:
                    unmatched[i].append(str(key))
                else:
                    share = Share(layer, load.source.strength(key.part), load.source.dyn)
                    shares.setdefault(key, []).append((i, share))
        for key in self._done.keys() - shares.keys():
            if key in modules:
                self.pristine.put_back(modules[key], "weight")
            del self._done[key]
        applied = [0] * len(loads)
        mismatched: list[list[str]] = [[] for _ in loads]
        for key, given in shares.items():
            signature = tuple((loads[i].source.file, share.strength, share.ranks) for i, share in given)
            misfits = self._write(key, modules[key], [share for _, share in given], signature)
            for position, (i, _) in enumerate(given):
                if position in misfits:
                    mismatched[i].append(f"{key}: {misfits[position]}")
                else:
                    applied[i] += 1
        names = [load.network.name for load in loads]
        rows = zip(names, applied, map(tuple, unmatched), map(tuple, mismatched))
        return PatchReport(tuple(NetworkReport(*row) for row in rows))

    def _leave_other_models(self, identity: str, modules: Mapping[LayerKey, nn.Module]) -> None:
        """Free the copies of modules that now hold other base weights; clean a model that merely is not used now."""
        here = {id(module) for module in modules.values()}
        other_base = self._identity is not None and identity != self._identity
        for module, name in self.pristine:
            if id(module) not in here:
                self.pristine.put_back(module, name)
            elif other_base:
                self.pristine.drop(module, name)
        if other_base:
            self._done = {}

    def _write(
        self, key: LayerKey, module: nn.Module, shares: Sequence[Share], signature: Signature
    ) -> Mapping[int, str]:
        """Bring one weight up to date; returns the shares that do not fit: position -> why."""
        done = self._done.get(key)
        if done is not None and done.signature == signature and self._holds(module, done):
            return done.misfits
        target = Target(module)
        misfits: dict[int, str] = {}
        active = [share for share in shares if share.strength != 0]
        if active:
            pristine = self.pristine.of(target)
            try:
                _merge_into(target, pristine, active)
            except ShapeMismatch:
                misfits = _misfits(pristine, shares)
                active = [s for i, s in enumerate(shares) if i not in misfits and s.strength != 0]
                if active:
                    _merge_into(target, pristine, active)
        if not active:
            self.pristine.put_back(module, target.name)
        self._done[key] = _Done(signature, misfits, bool(active))
        return misfits


def _merge_into(target: Target, pristine: Tensor, shares: Sequence[Share]) -> None:
    with writing(target.parameter):
        merged(pristine, shares, out=target.tensor)


def _misfits(pristine: Tensor, shares: Sequence[Share]) -> dict[int, str]:
    """Which shares do not fit the weight, and why: each tried alone."""
    found = {}
    for i, share in enumerate(shares):
        try:
            merged(pristine, [share])
        except ShapeMismatch as error:
            found[i] = str(error)
    return found
