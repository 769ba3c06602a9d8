"""Buckets, class pictures and several processes: every visit is made exactly as often as it should."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_lora.train.plan import Plan, Supply, Team, Visit
from lib_lora.train.sections_data import Training

SHAPES = [(64, 64), (96, 64), (64, 128)]
REPEATS = st.lists(st.tuples(st.integers(1, 3), st.sampled_from(SHAPES)), min_size=1, max_size=9)


def supply(items: list[tuple[int, tuple[int, int]]]) -> tuple[list[int], Supply]:
    visits = [index for index, (repeats, _) in enumerate(items) for _ in range(repeats)]
    return visits, Supply({index: shape for index, (_, shape) in enumerate(items)})


@settings(max_examples=60, deadline=None)
@given(
    items=REPEATS, epochs=st.integers(1, 4), batch=st.integers(1, 5), parts=st.integers(1, 3), world=st.integers(1, 3)
)
def test_epochs_are_exact(
    items: list[tuple[int, tuple[int, int]]], epochs: int, batch: int, parts: int, world: int
) -> None:
    visits, facts = supply(items)
    training = Training(epochs=epochs, batch_size=batch, accumulation=parts, seed=5)
    plans = [Plan(visits, training, facts, Team(rank, world)) for rank in range(world)]
    assert len({plan.steps for plan in plans}) == 1
    seen: list[Visit] = []
    for step in range(plans[0].steps):
        passes = [plan.batches(step) for plan in plans]
        assert len({len(each) for each in passes}) == 1 <= len(passes[0]) <= parts
        made = [visit for each in passes for one in each for visit in one]
        assert sorted(visit.slot for visit in made) == list(range(len(made)))  # each slot once, over all processes
        assert made
        for group in zip(*passes, strict=True):
            assert len({visit.bucket for one in group for visit in one}) == 1
            assert max(len(one) for one in group) - min(len(one) for one in group) <= 1
            assert all(len(one) <= batch for one in group)
        assert sum(w for plan in plans for w in plan.weights(step).values()) == pytest.approx(1)
        seen += made
    want = Counter(visits)
    assert Counter(visit.index for visit in seen) == {index: count * epochs for index, count in want.items()}
    assert all(visit.bucket == facts.buckets[visit.index] for visit in seen)
    assert plans[0].epoch(plans[0].steps) == epochs
    assert plans[0].epoch(0) == 0


@settings(max_examples=60, deadline=None)
@given(items=REPEATS, steps=st.integers(1, 12), batch=st.integers(1, 5), parts=st.integers(1, 3))
def test_steps_are_exact_and_nothing_is_dropped(
    items: list[tuple[int, tuple[int, int]]], steps: int, batch: int, parts: int
) -> None:
    visits, facts = supply(items)
    plan = Plan(visits, Training(steps=steps, batch_size=batch, accumulation=parts, seed=2), facts)
    made = [plan.batches(step) for step in range(steps)]
    assert plan.steps == steps
    assert all(len(step) == parts and all(step) for step in made)
    seen = Counter(visit.index for step in made for one in step for visit in one)
    whole, part = divmod(sum(seen.values()), len(visits))
    for index, count in Counter(visits).items():
        assert count * whole <= seen[index] <= count * (whole + bool(part))
    sizes = Counter(len(one) for step in made for one in step)
    short = sum(count for size, count in sizes.items() if size < batch)
    assert short <= len({facts.buckets[index] for index in visits})  # at the end, one of each bucket at most


def test_any_step_can_be_asked_for_alone() -> None:
    visits, facts = supply([(1, SHAPES[index % 3]) for index in range(7)])
    whole = Plan(visits, Training(steps=20, batch_size=3, accumulation=2, seed=9), facts)
    forward = [whole.batches(step) for step in range(20)]
    for step in (19, 0, 11, 3):
        fresh = Plan(visits, Training(steps=20, batch_size=3, accumulation=2, seed=9), facts)
        assert fresh.batches(step) == forward[step]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_are_one_with_a_larger_batch(world: int) -> None:
    visits, facts = supply([(1 + index % 2, SHAPES[index % 3]) for index in range(8)])
    facts = Supply(facts.buckets, {}, {0: (20, 21, 22)}, 0.5)
    alone = Plan(visits, Training(epochs=3, batch_size=2 * world, accumulation=2, seed=1), facts)
    team = [
        Plan(visits, Training(epochs=3, batch_size=2, accumulation=2, seed=1), facts, Team(r, world))
        for r in range(world)
    ]
    assert {plan.steps for plan in team} == {alone.steps}
    for step in range(alone.steps):
        together = [visit for plan in team for visit in plan.visits(step)]
        assert set(together) == set(alone.visits(step)) and len(together) == len(alone.visits(step))
        weights = {visit: weight for plan in team for visit, weight in plan.weights(step).items()}
        assert weights == pytest.approx(alone.weights(step))


@settings(max_examples=40, deadline=None)
@given(items=REPEATS, batch=st.integers(1, 4), pool=st.integers(1, 7), weight=st.floats(0.1, 2))
def test_every_batch_is_joined_by_as_many_class_pictures(
    items: list[tuple[int, tuple[int, int]]], batch: int, pool: int, weight: float
) -> None:
    visits, facts = supply(items)
    classes = tuple(range(100, 100 + pool))
    facts = Supply(facts.buckets, {}, {0: classes}, weight)
    plan = Plan(visits, Training(epochs=3, batch_size=batch, seed=4), facts)
    bare = Plan(visits, Training(epochs=3, batch_size=batch, seed=4), Supply(facts.buckets))
    drawn: Counter[int] = Counter()
    for step in range(plan.steps):
        made, weights = plan.visits(step), plan.weights(step)
        learned, remembered = [v for v in made if not v.prior], [v for v in made if v.prior]
        assert learned == bare.visits(step)  # class pictures change nothing about the others
        assert len(remembered) == len(learned)
        assert {v.bucket for v in remembered} == {v.bucket for v in learned}
        assert len({(v.step, v.slot) for v in made}) == len(made)
        assert sum(weights[v] for v in learned) == pytest.approx(1)
        assert sum(weights[v] for v in remembered) == pytest.approx(weight)
        drawn.update(v.index for v in remembered)
    assert set(drawn) <= set(classes)
    assert max(drawn.values()) - min(drawn[index] for index in classes) <= 1  # whole cycles


def test_concepts_are_joined_by_pictures_of_their_own_class() -> None:
    facts = Supply({}, {0: 0, 1: 1, 2: 2}, {0: (10, 11), 1: (20,)}, 1.0)
    plan = Plan([0, 0, 1, 2], Training(epochs=4, batch_size=2, seed=0), facts)
    joined: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    for step in range(plan.steps):
        made = plan.visits(step)
        for visit, mate in zip(made[: len(made) // 2], made[len(made) // 2 :], strict=True):
            joined[visit.index].add(mate.index)
    assert joined[0] == {10, 11}
    assert joined[1] == {20}
    assert joined[2] <= {10, 11, 20}


def test_a_single_picture_fills_its_batches() -> None:
    plan = Plan([0], Training(steps=5, batch_size=4, seed=0))
    assert [len(plan.visits(step)) for step in range(5)] == [4] * 5
