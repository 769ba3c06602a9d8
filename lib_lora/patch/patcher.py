"""The one patcher: merges networks into a live model's weights and takes them out again, bit for bit."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch
from lib_lora.patch.merge import merged
from lib_lora.patch.plan import Gift, Loaded, Plan, Signature, Source, Work, make_plan, signature
from lib_lora.patch.pristine import Pristine
from lib_lora.patch.report import NetworkReport, PatchReport
from lib_lora.patch.targets import Target, writing
from lib_lora.ports import Patchable

__all__ = ["Loaded", "Patcher", "Source"]
# bfloat16 reaches as far as float32; these do not.
NARROW = tuple(getattr(torch, n) for n in ("float16", "float8_e4m3fn", "float8_e5m2") if hasattr(torch, n))
Misfits = Mapping[Gift, str]


@dataclass(frozen=True)
class _Done:
    """What a parameter holds now: from which gifts, which of them did not fit and why, whether it is changed."""

    signature: Signature
    misfits: Mapping[int, str]  # position among the gifts -> why
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
        self._done: weakref.WeakKeyDictionary[nn.Module, dict[str, _Done]] = weakref.WeakKeyDictionary()

    def current(self, model: Patchable, sources: Sequence[Source]) -> PatchReport | None:
        """The last report if exactly this is applied to exactly these weights already, else None."""
        if self._identity != model.base_identity() or self._sources != tuple(sources):
            return None
        done = ((Target(module, name), d) for module, names in self._done.items() for name, d in names.items())
        return self._report if all(self._holds(target, d) for target, d in done) else None

    def apply(self, model: Patchable, loads: Sequence[Loaded]) -> PatchReport:
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
        self._identity, self._sources, self._report = None, (), PatchReport()
        self._done.clear()

    @contextmanager
    def applied(self, model: Patchable, loads: Sequence[Loaded]) -> Iterator[PatchReport]:
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

    def _holds(self, target: Target, done: _Done) -> bool:
        return not done.changed or self.pristine.holds(target)

    def _apply(self, model: Patchable, loads: Sequence[Loaded]) -> PatchReport:
        slots = model.slots()
        self._leave_other_models(model.base_identity(), {id(slot.module) for slot in slots.values()})
        plan = make_plan(slots, loads)
        self._clear_all_but({(id(work.target.module), work.target.name) for work in plan.works})
        sums: list[tuple[Work, Tensor]] = []
        for work in plan.works:
            total = self._write(work, signature(work, loads))
            if total is not None:
                sums.append((work, total))
        self._undo_overflows(sums)
        return self._reported(plan, loads)

    def _leave_other_models(self, identity: str, here: set[int]) -> None:
        """Free the copies of modules that now hold other base weights; clean a model that merely is not used now."""
        other_base = self._identity is not None and identity != self._identity
        for module, name in self.pristine:
            if id(module) not in here:
                self.pristine.put_back(module, name)
                self._done.pop(module, None)
            elif other_base:
                self.pristine.drop(module, name)
        if other_base:
            self._done.clear()

    def _clear_all_but(self, wanted: set[tuple[int, str]]) -> None:
        for module, names in list(self._done.items()):
            for name in [name for name in names if (id(module), name) not in wanted]:
                self.pristine.put_back(module, name)
                del names[name]

    def _write(self, work: Work, wanted: Signature) -> Tensor | None:
        """Bring one parameter up to date; for a narrow dtype returns a number that is finite if all of it is."""
        target = work.target
        done = self._done.get(target.module, {}).get(target.name)
        if done is not None and done.signature == wanted and self._holds(target, done):
            return None
        misfits: dict[int, str] = {}
        changed = False
        if any(gift.share.strength != 0 for gift in work.gifts):
            whole = self.pristine.of(target)
            base = target.wider(whole)
            parameter = target.parameter
            assert parameter is not None
            if len(work.pieces()) > 1 or work.gifts[0].piece.stop is not None:
                with writing(parameter):
                    parameter.data.copy_(whole)  # rows that nobody changes now may still be changed
            for piece, gifts in work.pieces().items():
                source = piece.view(whole if base is None else base)
                with writing(parameter):
                    fitting = _merge(piece.view(parameter.data), source, gifts, misfits, work)
                changed = changed or fitting
        if not changed:
            self.pristine.put_back(target.module, target.name)
        self._done.setdefault(target.module, {})[target.name] = _Done(wanted, misfits, changed)
        parameter = target.parameter
        if changed and parameter is not None and parameter.dtype in NARROW:
            data = parameter.data
            return (data if data.element_size() > 1 else data.half()).sum(dtype=torch.float32)
        return None

    def _undo_overflows(self, sums: Sequence[tuple[Work, Tensor]]) -> None:
        """Parameters that became infinite in their dtype get their original back; one look at the device for all."""
        if not sums:
            return
        finite = torch.isfinite(torch.stack([total.cpu() if len(sums) == 1 else total for _, total in sums])).tolist()
        for (work, _), good in zip(sums, finite):
            if good:
                continue
            target = work.target
            parameter = target.parameter
            dtype = str(parameter.dtype).removeprefix("torch.") if parameter is not None else ""
            self.pristine.put_back(target.module, target.name)
            done = self._done[target.module][target.name]
            why = f"the result is too large for {dtype}; lower the strength, or run the model in float32 (--no-half)"
            self._done[target.module][target.name] = _Done(
                done.signature, {i: done.misfits.get(i, why) for i in range(len(work.gifts))}, False
            )

    def _reported(self, plan: Plan, loads: Sequence[Loaded]) -> PatchReport:
        applied: list[set[str]] = [set() for _ in loads]
        faults: list[dict[str, str]] = [{} for _ in loads]
        for work in plan.works:
            done = self._done[work.target.module][work.target.name]
            for position, gift in enumerate(work.gifts):
                applied[gift.load].add(str(gift.key))
                if position in done.misfits:
                    faults[gift.load][str(gift.key)] = done.misfits[position]
        rows = []
        for i, load in enumerate(loads):
            wrong = tuple(f"{key}: {why}" for key, why in faults[i].items())
            rows.append(NetworkReport(load.network.name, len(applied[i]) - len(wrong), tuple(plan.unmatched[i]), wrong))
        return PatchReport(tuple(rows))


def _merge(out: Tensor, source: Tensor, gifts: Sequence[Gift], misfits: dict[int, str], work: Work) -> bool:
    """Write source + gifts to `out`; gifts that do not fit are left out and noted. Whether anything was written."""
    shares = [gift.share for gift in gifts if gift.share.strength != 0]
    if not shares:
        return False
    try:
        merged(source, shares, out=out)
    except ShapeMismatch:
        fitting = []
        for gift in gifts:
            try:
                merged(source, [gift.share])
            except ShapeMismatch as error:
                misfits[work.gifts.index(gift)] = str(error)
            else:
                fitting.append(gift.share)
        shares = [share for share in fitting if share.strength != 0]
        if shares:
            merged(source, shares, out=out)
    return bool(shares)
