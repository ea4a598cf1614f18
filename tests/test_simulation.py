"""The simulation of the engine (benchmarks/cluster.py): what must hold whatever the draws are."""

from dataclasses import replace

import pytest
from benchmarks.cluster import Cluster, Task, simulate

TASKS = [Task(10.0 + 7 * (at % 5)) for at in range(40)]
TOTAL = sum(task.seconds for task in TASKS)


def test_one_worker_takes_the_sum():
    result = simulate(TASKS, Cluster(1))
    assert result.makespan_s == pytest.approx(TOTAL)
    assert result.utilisation(1) == pytest.approx(1)
    driven = simulate(TASKS, Cluster(1, begin_s=0.5, judge_s=0.25))
    # it judges a task while the worker does the next; only the last judgement is waited for
    assert driven.makespan_s == pytest.approx(TOTAL + 40 * 0.5 + 0.25)
    assert driven.driver_s == pytest.approx(40 * 0.75)


@pytest.mark.parametrize("workers", [2, 7, 1000])
def test_workers_take_no_less_than_their_share_and_the_longest_task(workers):
    longest = max(task.seconds for task in TASKS)
    result = simulate(TASKS, Cluster(workers))
    least = max(TOTAL / workers, longest)
    assert least <= result.makespan_s <= TOTAL / workers + longest
    assert result.busy_s == pytest.approx(TOTAL)
    if workers >= len(TASKS):
        assert result.makespan_s == pytest.approx(longest)


@pytest.mark.parametrize("seed", range(5))
def test_deaths_cost_their_own_tasks_alone(seed):
    result = simulate(TASKS, Cluster(4, life_s=120.0, restart_s=5.0), seed=seed)
    assert result.deaths > 0
    assert max(result.tries) > 1
    assert result.busy_s - result.lost_s == pytest.approx(TOTAL)
    assert result.spans == pytest.approx([task.seconds for task in TASKS])
    assert sum(result.tries) - len(TASKS) <= result.deaths
    longest = max(task.seconds for task in TASKS)
    assert result.lost_s <= (sum(result.tries) - len(TASKS)) * longest
    again = simulate(TASKS, Cluster(4, life_s=120.0, restart_s=5.0), seed=seed)
    assert again == result
    kept = simulate(TASKS, Cluster(4, life_s=120.0, restart_s=5.0, checkpoint_s=1.0), seed=seed)
    assert kept.lost_s <= kept.deaths * 1.0
    assert kept.busy_s - kept.lost_s == pytest.approx(TOTAL)


def test_the_driver_judges_in_the_order_of_the_plan_and_bounds_the_rate():
    cluster = Cluster(1000, begin_s=0.1, judge_s=2.0, tail=0.5)
    result = simulate(TASKS, cluster)
    assert result.judged == list(range(len(TASKS)))
    assert result.makespan_s >= len(TASKS) * 2.1
    assert result.driver_s == pytest.approx(len(TASKS) * 2.1)


def test_a_store_gives_no_more_than_it_has():
    tasks = [replace(task, megabytes=500.0) for task in TASKS]
    slow = simulate(tasks, Cluster(1000, store_mbs=100.0))
    assert slow.makespan_s == pytest.approx(40 * 500 / 100 + max(task.seconds for task in TASKS))
    linked = simulate(tasks, Cluster(1, store_mbs=100.0, link_mbs=10.0))
    assert linked.makespan_s == pytest.approx(TOTAL + 40 * 500 / 10)
    assert simulate(tasks, Cluster(8, life_s=300.0, store_mbs=100.0)).judged == list(range(40))


def test_stragglers_take_longer_but_not_all_of_them():
    result = simulate(TASKS, Cluster(8, tail=0.2))
    slower = [span > task.seconds + 1e-9 for span, task in zip(result.spans, TASKS, strict=True)]
    assert 0 < sum(slower) < len(TASKS) / 2
    assert result.makespan_s > simulate(TASKS, Cluster(8)).makespan_s
