"""The simulation of a large sweep agrees with cases that can be computed by hand, and is the same every time."""

import math
from dataclasses import replace

import pytest
from scale import Cluster, Costs, simulated


@pytest.mark.parametrize(("batches", "gpus"), [(10, 3), (12, 4), (1, 8), (25, 1)])
def test_equal_batches_take_as_many_rounds_as_there_are_batches_per_worker(batches: int, gpus: int) -> None:
    for in_order in (False, True):
        found = simulated(batches, Costs(5.0), Cluster(gpus, 1, in_order=in_order))
        assert found.seconds == math.ceil(batches / gpus) * 5.0
        assert found.gpus == pytest.approx(batches * 5.0 / (found.seconds * gpus))
    late = simulated(batches, Costs(5.0, listen=2.0, store=1.0, start=7.0), Cluster(1, 1))
    assert late.seconds == 7.0 + 5.0 * batches + 2.0 + 1.0


def test_the_slowest_stage_sets_the_pace() -> None:
    many = Cluster(8, 8, ahead=100)
    assert simulated(40, Costs(1.0, store=1.0), many).seconds == 1.0 + 40.0
    assert simulated(40, Costs(1.0, listen=2.0), replace(many, listeners=1)).seconds == 1.0 + 40 * 2.0
    # With two batches per GPU that may be unfinished, GPUs wait for the driver, and finish at its pace.
    assert simulated(40, Costs(1.0, store=1.0), replace(many, ahead=2)).seconds == 1.0 + 40.0


def test_failures_cost_time_and_no_batch() -> None:
    costs = Costs(100.0, listen=10.0, store=0.1, start=50.0)
    cluster = Cluster(10, 2, failures_per_day=200.0, spread=0.2)
    found = simulated(300, costs, cluster)
    assert found == simulated(300, costs, cluster)
    assert found != simulated(300, costs, replace(cluster, seed=1))
    assert found.failures > 10
    without = simulated(300, costs, replace(cluster, failures_per_day=0.0))
    assert found.seconds > without.seconds
    # Every failure loses at most one batch and one start, which the other GPUs share.
    assert found.seconds < without.seconds + (found.failures + 10) * 250 / 10
    assert found.driver == pytest.approx(300 * 0.1 / found.seconds)
