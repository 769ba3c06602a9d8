"""Steps and epochs are exact."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lib_lora.train.plan import Plan
from lib_lora.train.sections_data import Training


@given(count=st.integers(1, 9), epochs=st.integers(1, 4), batch=st.integers(1, 5), parts=st.integers(1, 3))
def test_epochs_visit_everything_equally_often(count: int, epochs: int, batch: int, parts: int) -> None:
    plan = Plan(range(count), Training(epochs=epochs, batch_size=batch, accumulation=parts, seed=3))
    seen = [visit.index for step in range(plan.steps) for visit in plan.visits(step)]
    assert Counter(seen) == dict.fromkeys(range(count), epochs)
    for epoch in range(epochs):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert plan.epoch(plan.steps) == epochs
    assert all(plan.visits(step) for step in range(plan.steps))


def test_steps_are_full_and_run_over_the_ends_of_epochs() -> None:
    plan = Plan(range(3), Training(steps=5, batch_size=2))
    assert [len(plan.visits(step)) for step in range(5)] == [2] * 5
    assert Counter(v.index for step in range(3) for v in plan.visits(step)) == {0: 2, 1: 2, 2: 2}
    assert plan.epoch(3) == 2


def test_epochs_are_shuffled_differently_and_by_seed() -> None:
    orders = [
        [v.index for v in Plan(range(9), Training(batch_size=9, seed=s)).visits(e)] for s in (0, 1) for e in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4
