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
from lib_lora.patch.exact import exact_sums
from lib_lora.patch.merge import merged
from lib_lora.patch.overflow import peak, reason
from lib_lora.patch.plan import Gift, Loaded, Plan, Signature, Source, Work, make_plan, signature
from lib_lora.patch.pristine import Pristine, Room, has_room
from lib_lora.patch.report import NetworkReport, PatchReport
from lib_lora.patch.targets import NARROW, Piece, Target, writing
from lib_lora.ports import Patchable

__all__ = ["Loaded", "Patcher", "Source"]
Misfits = Mapping[Gift, str]


@dataclass(frozen=True)
class _Done:
    """What a parameter holds now: from which gifts, which of them did not fit and why, whether it is changed."""

    signature: Signature
    misfits: Mapping[int, str]  # position among the gifts -> why
    changed: bool
    fault: str | None = None  # why nothing could be written there at the time


class Patcher:
    """Keeps one model's weights equal to pristine + the networks last asked for.

    `room(device, bytes)` says whether originals may stay on a device beside what is merged, or go to main memory. They
    take as much as the touched weights: 0.5 GB in float16 for a usual LoRA on SD1.5, 5 to 6 GB on SDXL.
    A context manager: leaving it restores. Not thread-safe; the host calls it from where it samples.
    """

    def __init__(self, room: Room = has_room) -> None:
        self.pristine = Pristine(room)
        self._identity: str | None = None
        self._sources: tuple[Source, ...] = ()
        self._report = PatchReport()
        self._written = 0
        self._done: weakref.WeakKeyDictionary[nn.Module, dict[str, _Done]] = weakref.WeakKeyDictionary()

    def current(self, model: Patchable, sources: Sequence[Source]) -> PatchReport | None:
        """The last report if exactly this is applied to exactly these weights already, else None."""
        if self._identity != model.base_identity() or self._sources != tuple(sources):
            return None
        done = [(Target(module, name), d) for module, names in self._done.items() for name, d in names.items()]
        # Fewer than were written: a model was freed, and another may have its identity by chance.
        same = len(done) == self._written and all(self._holds(target, d) for target, d in done)
        return self._report if same else None

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
            self._report = self._apply(model, loads)
        except BaseException:
            self.restore()
            raise
        self._identity, self._sources = model.base_identity(), sources
        self._written = sum(map(len, self._done.values()))
        return self._report

    def restore(self) -> None:
        """Put every original weight back and free the copies. Weights replaced by others meanwhile are left alone."""
        with torch.inference_mode(False), torch.no_grad():
            self.pristine.drop_replaced()
            for module, name in self.pristine:
                self.pristine.put_back(module, name)
        torch.clear_autocast_cache()
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
        return self.pristine.holds(target) if done.changed else done.fault is None or done.fault == target.fault()

    def _apply(self, model: Patchable, loads: Sequence[Loaded]) -> PatchReport:
        slots = model.slots()
        plan = make_plan(slots, loads)
        with exact_sums({p.device for work in plan.works if (p := work.target.parameter) is not None}):
            self.pristine.drop_replaced()
            if model.base_identity() != self._identity:
                self._forget_misfits()
            self._clear_all_but({(id(work.target.module), work.target.name) for work in plan.works})
            self.pristine.expect(work.target for work in plan.works)
            written = [(work, self._write(work, signature(work, loads))) for work in plan.works]
            self._undo_overflows([(work, number) for work, number in written if number is not None])
        return self._reported(plan, loads)

    def _clear_all_but(self, wanted: set[tuple[int, str]]) -> None:
        """Restore whatever is not to be changed now, also in a model that was put aside with networks in it."""
        for module, names in list(self._done.items()):
            for name in [name for name in names if (id(module), name) not in wanted]:
                self.pristine.put_back(module, name)
                del names[name]

    def _forget_misfits(self) -> None:
        """What did not go into other weights (an overflow, say) may go into these."""
        for names in self._done.values():
            for name in [name for name, done in names.items() if done.misfits]:
                del names[name]

    def _write(self, work: Work, wanted: Signature) -> Tensor | None:
        """Bring one parameter up to date; for a narrow dtype returns a number that is finite if all of it is."""
        target = work.target
        done = self._done.get(target.module, {}).get(target.name)
        if done is not None and done.signature == wanted and self._holds(target, done):
            return None
        misfits: dict[int, str] = {}
        changed = False
        wants = any(gift.share.strength != 0 for gift in work.gifts)
        fault = target.fault() if wants else None
        if fault is not None:
            misfits = dict.fromkeys(range(len(work.gifts)), fault)
        elif wants:
            changed = self._merge_into(target, work, misfits)
        if not changed:
            self.pristine.put_back(target.module, target.name)
        self._done.setdefault(target.module, {})[target.name] = _Done(wanted, misfits, changed, fault)
        parameter = target.parameter
        return peak(parameter.data) if changed and parameter is not None and parameter.dtype in NARROW else None

    def _merge_into(self, target: Target, work: Work, misfits: dict[int, str]) -> bool:
        """Write original + gifts; whether anything was written. `misfits` gets what does not fit."""
        original = self.pristine.of(target)
        wider = target.wider(original)
        parameter = target.parameter
        assert parameter is not None
        space = self.pristine.space(target)
        pieces = work.pieces()
        changed = False
        with writing(parameter):
            if pieces.keys() - {Piece(), Piece(transposed=True)}:
                space.copy_(original)  # rows that nobody changes now may hold what an earlier request wrote
            for piece, gifts in pieces.items():
                source = piece.view(original if wider is None else wider)
                changed = _merge(piece.view(space), source, gifts, misfits, work) or changed
            if changed:
                self.pristine.set(target, space)
        return changed

    def _undo_overflows(self, peaks: Sequence[tuple[Work, Tensor]]) -> None:
        """Parameters that became infinite in their dtype get their original back; one look at each device for all."""
        for device in {number.device for _, number in peaks}:
            here = [(work, number) for work, number in peaks if number.device == device]
            finite = torch.isfinite(torch.stack([number for _, number in here])).tolist()
            for (work, _), good in zip(here, finite, strict=True):
                if not good:
                    self._undo_overflow(work)

    def _undo_overflow(self, work: Work) -> None:
        target = work.target
        parameter = target.parameter
        assert parameter is not None  # its overflow was just seen
        why = reason(parameter.dtype)
        self.pristine.put_back(target.module, target.name)
        done = self._done[target.module][target.name]
        misfits = {i: done.misfits.get(i, why) for i in range(len(work.gifts))}
        self._done[target.module][target.name] = _Done(done.signature, misfits, False)

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
