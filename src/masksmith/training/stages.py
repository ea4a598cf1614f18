"""The stages of a training laid out as epochs, their sizes, and the batches of each."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from masksmith.augment import Batch, Task, make_batch
from masksmith.data.store import Store
from masksmith.preprocess import round_up
from masksmith.randomness import stream
from masksmith.training.config import ScheduleConfig, Stage, TrainingConfig


@dataclass(frozen=True)
class FoldData:
    """What one fold is trained on."""

    fold: int
    ids: list[str]
    images: Store
    masks: Store
    seed: int
    key: str = ""
    """Hash of everything that the training depends on; a checkpoint with another key is not continued."""


@dataclass(frozen=True)
class Epoch:
    """One epoch of the plan: which stage it belongs to, and where it lies in the span of its schedule."""

    stage: int
    number: int
    batch_size: int
    steps: int
    schedule: ScheduleConfig
    span_start: int
    span_steps: int
    first_step: int
    starts_optimizer: bool


def plan_epochs(config: TrainingConfig, num_images: int) -> list[Epoch]:
    """Lay the stages out as epochs with their number of steps; the last, incomplete batch of an epoch is left out."""
    spans: list[list[int]] = []  # stages that share one schedule
    for index, stage in enumerate(config.stages):
        if stage.schedule is not None:
            spans.append([])
        spans[-1].append(index)
    sizes = [stage.batch_size or config.batch_size for stage in config.stages]
    steps = [max(1, num_images // size) for size in sizes]
    plan: list[Epoch] = []
    done = 0
    for span in spans:
        start, length = done, sum(config.stages[i].epochs * steps[i] for i in span)
        schedule = config.stages[span[0]].schedule
        assert schedule is not None
        for i in span:
            for number in range(config.stages[i].epochs):
                fresh = number == 0 and config.stages[i].optimizer is not None
                plan.append(Epoch(i, number, sizes[i], steps[i], schedule, start, length, done, fresh))
                done += steps[i]
    return plan


def canvas_hw(config: TrainingConfig, stage: Stage, data: FoldData, divisor: int) -> tuple[int, int]:
    """Return the size that a stage trains at: the largest image (or the crop), scaled and padded to the divisor."""
    sizes = [data.images.shape(name) for name in data.ids]
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    if config.crop_hw is not None:
        height, width = min(height, config.crop_hw[0]), min(width, config.crop_hw[1])
    return round_up(round(height * stage.scale), divisor), round_up(round(width * stage.scale), divisor)


def training_work(config: TrainingConfig, data: FoldData, divisor: int) -> int:
    """Return the pixels that training a fold will look at: the unit of Remaining."""
    sizes = [canvas_hw(config, stage, data, divisor) for stage in config.stages]
    plan = plan_epochs(config, len(data.ids))
    return sum(sizes[e.stage][0] * sizes[e.stage][1] * e.batch_size * e.steps for e in plan)


def batches_of(task: Task, data: FoldData, epoch: Epoch, *, device: str) -> Iterator[Batch]:
    """Yield the batches of an epoch: made between the steps on a CPU, ahead by threads on a GPU."""
    for store in (data.images, data.masks):
        store.refuse_truncated()
    counters = (data.seed, data.fold, epoch.stage, epoch.number)
    order = stream(*counters).permutation(len(data.ids))

    def make(step: int) -> Batch:
        chosen = order[step * epoch.batch_size : (step + 1) * epoch.batch_size]
        return make_batch(task, [data.ids[i] for i in chosen], chosen.tolist(), counters=counters)

    if device == "cpu":
        yield from map(make, range(epoch.steps))  # a second busy thread would slow the step five-fold
        return
    yield from prefetch(make, epoch.steps)


def prefetch(make: Callable[[int], Batch], steps: int, *, threads: int = 4) -> Iterator[Batch]:
    """Yield ``make(0)``, ``make(1)``, … in order, made ahead by threads that call numpy and OpenCV only."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(make, step) for step in range(min(2 * threads, steps))]
        upcoming = iter(range(len(waiting), steps))
        while waiting:
            yield waiting.pop(0).result()
            waiting.extend(pool.submit(make, step) for step in islice(upcoming, 1))
