"""The engine in simulation: many tasks on 1 to 1,000 workers, with stragglers, deaths, a slow store, a busy driver.

    python benchmarks/simulate.py [--workers 1 10 100 1000] [--seeds 5] [--picture docs/scaling.svg]

Two works on the clusters of cluster.py: the trainings of a contest, and the prediction of a million images of
1024x1024. Task times are those that scaling.py recorded (``benchmarks/scaling.jsonl``), in their own spread; what is
assumed beyond them are the constants of this file. Of scenarios with draws the middle one of ``--seeds`` runs is shown.
"""

import argparse
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster import Cluster, Result, Task, simulate
from scaling_model import Costs, fit, read_lines

TRAINING_S, EPOCH_S, TRAINING_MB = 3600.0, 60.0, 60.0
"""Assumed: a training of an hour with a checkpoint each minute; 4,000 decoded images of 101x101 with masks and code."""
MILLION, SHARD, IMAGE_MB, OVERLAP = 1_000_000, 250, 1.0, 1.5
"""Images of 1024x1024, images a shard, MB of a file, and pixels that go through the net for one of the image."""
FEW = 100
"""Tasks: so few are not cut finer."""
BEGIN_S, WRITE_S = 0.005, 0.02
"""Assumed: of the driver, to hand out a task, and to write the entry of a finished shard."""
SCENARIOS: dict[str, dict[str, float]] = {
    "nothing else": {},
    "stragglers": {"tail": 0.05},
    "deaths": {"life_s": 4 * 3600.0},
    "slow store": {"store_mbs": 200.0, "link_mbs": 100.0},
    "driver": {"begin_s": 1.0, "judge_s": 1.0},
    "all": {"tail": 0.05, "life_s": 4 * 3600.0, "store_mbs": 200.0, "link_mbs": 100.0},
}
"""What differs from perfect workers; under "driver" the numbers are how often its measured times are counted."""


@dataclass(frozen=True)
class Work:
    """Tasks, and what the driver has to do for each."""

    title: str
    tasks: list[Task]
    begin_s: float
    judge_s: float
    checkpoint_s: float = math.inf


def recorded(path: Path) -> tuple[list[float], float, float]:
    """Return the training times of folds as parts of their median, and seconds of a search by images: (a, b).

    Of two lines for one fold the later counts.
    """
    points = read_lines(path)
    most = max(one.get("folds", 0) for one in points)
    times = [
        one["seconds"] for one in points if one.get("folds") == most and one["stage"].startswith("train ")
    ][1:]  # the first one loads what the others find
    searches = {
        one["images"]: one["seconds"] for one in points if (one["axis"], one["stage"]) == ("images", "search")
    }
    found, _ = fit(list(searches), list(searches.values()), (0, 1))
    middle = statistics.median(times)
    return [one / middle for one in times], found[0], found[1]


def works(path: Path) -> list[Work]:
    """Return the trainings of a contest, and the prediction of a million images."""
    shares, fixed_s, image_s = recorded(path)
    spread = itertools.cycle(shares)
    mpx_s = Costs(read_lines(path)).net_s(training=False)
    shard_s = SHARD * 1024**2 / 1e6 * OVERLAP * mpx_s
    return [
        Work(
            f"40 trainings of {TRAINING_S / 3600:g} h",
            [Task(TRAINING_S * next(spread), TRAINING_MB) for _ in range(40)],
            BEGIN_S,
            fixed_s + 4000 * image_s,
            EPOCH_S,
        ),
        Work(
            f"prediction: {MILLION // SHARD} shards of {shard_s / 60:.0f} min",
            [Task(shard_s * next(spread), SHARD * IMAGE_MB) for _ in range(MILLION // SHARD)],
            BEGIN_S,
            WRITE_S,
        ),
    ]


def cluster_of(work: Work, scenario: str, workers: int) -> Cluster:
    """Return the cluster of a scenario; only "driver" and "all" count the driver's time."""
    options = dict(SCENARIOS[scenario])
    counts = 1.0 if scenario in ("driver", "all") else 0.0
    options |= {"begin_s": counts * work.begin_s, "judge_s": counts * work.judge_s}
    return replace(Cluster(workers, checkpoint_s=work.checkpoint_s), **options)


def middle_of(tasks: Sequence[Task], cluster: Cluster, seeds: int) -> Result:
    """Return the run whose makespan is the middle one of so many seeds; where nothing is drawn, of one."""
    draws = cluster.tail > 0 or math.isfinite(cluster.life_s)
    runs = [simulate(tasks, cluster, seed=seed) for seed in range(seeds if draws else 1)]
    return sorted(runs, key=lambda run: run.makespan_s)[len(runs) // 2]


def table_of(work: Work, counts: Sequence[int], seeds: int) -> dict[str, list[tuple[float, float, Result]]]:
    """Return scenario -> for each number of workers: times as fast as one perfect worker, utilisation, result."""
    alone = sum(task.seconds for task in work.tasks)
    found: dict[str, list[tuple[float, float, Result]]] = {}
    for scenario in SCENARIOS:
        for workers in counts:
            result = middle_of(work.tasks, cluster_of(work, scenario, workers), seeds)
            row = alone / result.makespan_s, result.utilisation(workers), result
            found.setdefault(scenario, []).append(row)
    return found


def shards_table(work: Work, workers: int, seeds: int) -> list[tuple[int, float, float]]:
    """Return (shards a worker, times as fast with stragglers, and with deaths too) for the same work cut finer."""
    whole = sum(task.seconds for task in work.tasks)
    spread = itertools.cycle(task.seconds for task in work.tasks)
    found = []
    for each in (1, 2, 4, 16, 64):
        shares = [next(spread) for _ in range(each * workers)]
        tasks = [Task(whole * one / sum(shares)) for one in shares]
        cluster = Cluster(workers, work.begin_s, work.judge_s, tail=0.05)
        speeds = [
            whole / middle_of(tasks, one, seeds).makespan_s
            for one in (cluster, replace(cluster, life_s=SCENARIOS["deaths"]["life_s"]))
        ]
        found.append((each, speeds[0], speeds[1]))
    return found


def draw(panels: Sequence[tuple[Work, dict, Sequence[int]]], path: Path) -> None:
    """Draw the speed-up over the number of workers, both by decades."""
    from masksmith.reporting.drawing import FAINT, INK, RULE, SERIES, Drawing

    width, side, top = 760, 300, 78
    drawing = Drawing(width, 460, "How many times as fast as one worker (simulated)")
    colours = (INK, *SERIES)
    for panel, (work, table, counts) in enumerate(panels):
        left, decades = 62 + 370 * panel, math.log10(max(counts))

        def at(x: float, y: float, left: int = left, decades: float = decades) -> tuple[float, float]:
            return left + side * math.log10(x) / decades, top + side * (1 - math.log10(max(y, 1)) / decades)

        drawing.text(left, top - 14, work.title, size=12, weight="600")
        for power in range(math.floor(decades) + 1):
            value = 10**power
            for one, other in (
                (at(1, value), at(10**decades, value)),
                (at(value, 1), at(value, 10**decades)),
            ):
                drawing.path([one, other], colour=RULE, width=1)
            x, y = at(1, value)
            drawing.text(x - 6, y + 4, f"{value:,}", size=11, colour=FAINT, anchor="end")
            drawing.text(
                at(value, 1)[0], top + side + 16, f"{value:,}", size=11, colour=FAINT, anchor="middle"
            )
        drawing.text(left + side / 2, top + side + 34, "workers", size=12, colour=FAINT, anchor="middle")
        drawing.path([at(1, 1), at(10**decades, 10**decades)], colour=FAINT, width=1, dash="4 3")
        for colour, rows in zip(colours, table.values(), strict=True):
            points = [at(count, row[0]) for count, row in zip(counts, rows, strict=True)]
            drawing.path(points, colour=colour, width=2)
            drawing.dots(points, colour=colour)
    place = 62.0
    for colour, name in zip(colours, SCENARIOS, strict=True):
        drawing.text(place, 442, name, size=12, colour=colour, weight="600")
        place += 7.2 * len(name) + 26
    drawing.write(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = [1, 3, 10, 30, 100, 300, 1000]
    parser.add_argument("--workers", type=int, nargs="+", default=steps)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lines", type=Path, default=Path(__file__).with_name("scaling.jsonl"))
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    panels = []
    for work in works(asked.lines):
        table = table_of(work, asked.workers, asked.seeds)
        panels.append((work, table, asked.workers))
        seconds = [task.seconds for task in work.tasks]
        print(
            f"\n{work.title}: {sum(seconds) / 3600:.1f} h in all, {min(seconds) / 60:.0f} to "
            f"{max(seconds) / 60:.0f} min each; driver: {work.begin_s:g} s to hand out, {work.judge_s:.2g} s to judge"
        )
        print(f"{'workers':14s}" + "".join(f"{count:>15,d}" for count in asked.workers))
        for scenario, rows in table.items():
            print(f"{scenario:14s}" + "".join(f"{speed:>9.1f} ({used:4.0%})" for speed, used, _ in rows))
        for scenario in ("deaths", "all"):
            told = [
                f"{one.deaths} deaths, {one.lost_s / max(1e-9, one.busy_s):.1%} lost"
                for *_, one in table[scenario]
            ]
            print(f"  {scenario}, {asked.workers[-1]} workers: {told[-1]}; 1 worker: {told[0]}")
        if len(work.tasks) > FEW:
            cut = ", ".join(
                f"{each}: {one:.1f} and {both:.1f}"
                for each, one, both in shards_table(work, 100, asked.seeds)
            )
            print(f"  100 workers, shards a worker: times as fast with stragglers, and with deaths: {cut}")
        last = table["driver"][-1][2]
        print(
            f"  driver busy {last.driver_s / last.makespan_s:.0%} of the time at {asked.workers[-1]} workers"
        )
    if asked.picture:
        draw(panels, asked.picture)


if __name__ == "__main__":
    main()
