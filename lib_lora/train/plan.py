"""Which pictures each step sees: exact in steps and epochs, shuffled by key, no remainder dropped."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from lib_lora.train import keyed
from lib_lora.train.images import Size
from lib_lora.train.sections_data import Training

if TYPE_CHECKING:
    from lib_lora.train.captions import Dataset

Group = list[tuple[int, int]]  # (place in the stream of visits, index of the item)


@dataclass(frozen=True)
class Visit:
    """One look at one picture: which item, where in the run (`step`, `slot` within the step), cut to which size.

    `step` and `slot` name everything random about the visit. Without a `bucket` it is the item's own.
    """

    index: int
    step: int
    slot: int
    bucket: Size | None = None
    prior: bool = False


@dataclass(frozen=True)
class Supply:
    """What a plan knows of the items: buckets, concepts, and the class pictures of each concept.

    Items not named in `buckets` share one bucket. With class pictures every visit is joined by one of its concept's
    (of any, if it has none), weighted with `prior_weight`.
    """

    buckets: Mapping[int, Size] = field(default_factory=dict)
    concepts: Mapping[int, int] = field(default_factory=dict)
    classes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    prior_weight: float = 0.0


@dataclass(frozen=True)
class Team:
    """This process's number among the `world` processes that train together."""

    rank: int = 0
    world: int = 1


class Plan:
    """The run as one stream of visits: epoch after epoch, each in its own order, cut into batches, these into steps.

    A batch is made as soon as enough pictures of one bucket have come by; what still waits at the end of the run makes
    short batches. With `training.steps` the stream is as long as it can be in so many steps, and so runs over the ends
    of epochs; with `training.epochs` it ends after the last epoch, and the last step holds what is left.

    Several processes share each batch of world * batch_size: together they see what one process with that batch size
    would, under the same (step, slot). `per_step` is the number of visits of a full step over all processes.
    """

    def __init__(
        self, visits: Sequence[int], training: Training, supply: Supply | None = None, team: Team | None = None
    ) -> None:
        self._visits = tuple(visits)
        self._seed = training.seed
        self._supply, self._team = supply or Supply(), team or Team()
        self._passes = training.accumulation
        self._size = training.batch_size * self._team.world
        self.per_step = self._size * self._passes
        self._counts = Counter(self._bucket(index) for index in self._visits)
        self._order = lru_cache(maxsize=4)(self._shuffle)
        self._ranks = lru_cache(maxsize=2)(self._rank)
        self._cycle = lru_cache(maxsize=8)(self._shuffle_classes)
        self._groups = lru_cache(maxsize=2)(self._pack)
        if training.epochs is None:
            self.steps = training.steps
            self._total = self._length(self.steps * self._passes)
        else:
            self._total = training.epochs * len(self._visits)
            self.steps = -(-self._ended(training.epochs) // self._passes)
        self._rest = self._left_over()
        self._full = self._begun(self._total // len(self._visits))
        if self._total % len(self._visits):
            self._full += len(self._groups(self._total // len(self._visits)))

    @classmethod
    def of(cls, dataset: Dataset, training: Training, prior_weight: float = 0.0, team: Team | None = None) -> Plan:
        """The plan for a dataset."""
        classes: dict[int, list[int]] = {}
        for index in dataset.class_items() if prior_weight else ():
            classes.setdefault(dataset.items[index].concept, []).append(index)
        supply = Supply(
            {index: item.bucket for index, item in enumerate(dataset.items)},
            {index: item.concept for index, item in enumerate(dataset.items)},
            {concept: tuple(indices) for concept, indices in classes.items()},
            prior_weight,
        )
        return cls(dataset.visits(), training, supply, team)

    def batches(self, step: int) -> list[list[Visit]]:
        """This process's visits of `step`, counted from 0: one list for each forward pass, all in one bucket.

        The class visits stand behind the instance visits of a batch. A list may be empty where a short batch has fewer
        pictures than there are processes.
        """
        found, start = [], 0
        for group in self._of_step(step):
            rank, world = self._team.rank, self._team.world
            first, last = rank * len(group) // world, (rank + 1) * len(group) // world
            found.append(self._batch(group[first:last], step, start + first))
            start += len(group)
        return found

    def visits(self, step: int) -> list[Visit]:
        """All visits of `batches(step)` in one list."""
        return [visit for batch in self.batches(step) for visit in batch]

    def weights(self, step: int) -> dict[Visit, float]:
        """The weight of each visit of this process: with those of all processes a step's loss is, summed up,

        mean over instances + prior weight * mean over class pictures (Ruiz et al. 2022, arXiv:2208.12242, eq. 2).
        """
        count = sum(len(group) for group in self._of_step(step))
        share = {False: 1 / count, True: self._supply.prior_weight / count}
        return {visit: share[visit.prior] for visit in self.visits(step)}

    def epoch(self, step: int) -> int:
        """How many epochs' worth of visits are complete after `step` steps."""
        passes = step * self._passes
        rest = sum(len(group) for group in self._rest[: max(0, passes - self._full)])
        return (min(passes, self._full) * self._size + rest) // len(self._visits)

    def _batch(self, group: Group, step: int, start: int) -> list[Visit]:
        places = list(enumerate(group, start=start))
        bucket = self._supply.buckets.get(group[0][1]) if group else None
        batch = [Visit(index, step, slot, bucket) for slot, (_, index) in places]
        if self._supply.classes:
            batch += [
                Visit(self._class_at(place), step, self.per_step + slot, bucket, prior=True)
                for slot, (place, _) in places
            ]
        return batch

    def _of_step(self, step: int) -> list[Group]:
        end = self._full + len(self._rest)
        return [self._group(number) for number in range(step * self._passes, min((step + 1) * self._passes, end))]

    def _group(self, number: int) -> Group:
        """The batch of this number in the run, over all processes."""
        if number >= self._full:
            return self._rest[number - self._full]
        epoch = bisect_right(range(self._total // len(self._visits) + 1), number, key=self._begun) - 1
        return self._groups(epoch)[number - self._begun(epoch)]

    def _pack(self, epoch: int) -> list[Group]:
        """The batches that become full in an epoch, in order."""
        waiting, groups = self._waiting(epoch), []
        for item in self._stream(epoch):
            queue = waiting.setdefault(self._bucket(item[1]), [])
            queue.append(item)
            if len(queue) == self._size:
                groups.append(queue[:])
                queue.clear()
        return groups

    def _waiting(self, epoch: int) -> dict[Size | None, Group]:
        """By bucket, what is in no batch yet as an epoch begins: the last visits of those before."""
        lacks = {bucket: epoch * count % self._size for bucket, count in self._counts.items()}
        waiting: dict[Size | None, Group] = {bucket: [] for bucket in lacks}
        while any(lacks.values()):
            epoch -= 1
            for item in reversed(self._stream(epoch)):
                bucket = self._bucket(item[1])
                if lacks[bucket]:
                    lacks[bucket] -= 1
                    waiting[bucket].insert(0, item)
        return waiting

    def _left_over(self) -> list[Group]:
        """The short batches at the end of the run, the longest waiting first."""
        epoch = self._total // len(self._visits)
        waiting = self._waiting(epoch)
        for item in self._stream(epoch):
            queue = waiting[self._bucket(item[1])]
            queue.append(item)
            if len(queue) == self._size:
                queue.clear()
        return sorted(queue for queue in waiting.values() if queue)

    def _length(self, passes: int) -> int:
        """The longest stream that makes `passes` batches, short ones at its end counted."""
        low, high = 0, passes * self._size // len(self._visits) + 1
        epoch = bisect_right(range(low, high + 1), passes, key=self._ended) - 1
        made, within = self._ended(epoch), dict.fromkeys(self._counts, 0)
        order = self._order(epoch)
        for done, position in enumerate(order):
            bucket = self._bucket(self._visits[position])
            if (epoch * self._counts[bucket] + within[bucket]) % self._size == 0:
                if made == passes:
                    return epoch * len(order) + done
                made += 1
            within[bucket] += 1
        return (epoch + 1) * len(order)

    def _begun(self, epoch: int) -> int:
        """How many batches are full before an epoch begins."""
        return sum(epoch * count // self._size for count in self._counts.values())

    def _ended(self, epochs: int) -> int:
        """How many batches a run of so many epochs has."""
        return sum(-(-epochs * count // self._size) for count in self._counts.values())

    def _stream(self, epoch: int) -> Group:
        """The visits of an epoch that belong to the run, as (place, index)."""
        start = epoch * len(self._visits)
        order = self._order(epoch)[: max(0, self._total - start)]
        return [(start + within, self._visits[position]) for within, position in enumerate(order)]

    def _class_at(self, place: int) -> int:
        """The class picture that joins the visit at a place of the stream: each concept's in shuffled cycles."""
        epoch, within = divmod(place, len(self._visits))
        ranks, totals = self._ranks(epoch)
        concept, rank = ranks[within]
        count = len(self._pool(concept))
        cycle, at = divmod(epoch * totals[concept] + rank, count)
        return self._cycle(concept, cycle)[at]

    def _pool(self, concept: int) -> tuple[int, ...]:
        classes = self._supply.classes
        return classes.get(concept) or tuple(index for pool in classes.values() for index in pool)

    def _shuffle_classes(self, concept: int, cycle: int) -> list[int]:
        pool = self._pool(concept)
        generator = keyed.generator(self._seed, "class", concept, cycle)
        return [pool[place] for place in torch.randperm(len(pool), generator=generator).tolist()]

    def _rank(self, epoch: int) -> tuple[list[tuple[int, int]], Counter[int]]:
        """(concept, how many visits of it came before in this epoch) at each place of an epoch, and their totals."""
        totals: Counter[int] = Counter()
        ranks = []
        for position in self._order(epoch):
            concept = self._supply.concepts.get(self._visits[position], 0)
            ranks.append((concept, totals[concept]))
            totals[concept] += 1
        return ranks, totals

    def _bucket(self, index: int) -> Size | None:
        return self._supply.buckets.get(index)

    def _shuffle(self, epoch: int) -> list[int]:
        return keyed.order(self._seed, epoch, len(self._visits))
