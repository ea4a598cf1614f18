"""What a fold is trained on: the sizes of its stages, and the batches of an epoch."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from masksmith.augment import Batch, Task, make_batch, names_of, with_copies
from masksmith.data.store import Store
from masksmith.preprocess import TRUE_SIZE, SizeConfig, canvas_of
from masksmith.randomness import stream
from masksmith.training.config import Stage, TrainingConfig
from masksmith.training.plan import Epoch, plan_epochs


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
    size: SizeConfig = TRUE_SIZE
    """How images lie on the canvas."""
    scalars: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Id -> numbers for the model; empty where it takes none."""


def canvas_hw(config: TrainingConfig, stage: Stage, data: FoldData, divisor: int) -> tuple[int, int]:
    """Return the size that a stage trains at: the largest image (or the crop), scaled and padded to the divisor."""
    sizes = list({data.images.shape(name) for name in data.ids})
    return canvas_of(data.size, sizes, divisor=divisor, scale=stage.scale, crop_hw=config.crop_hw)


def training_work(config: TrainingConfig, data: FoldData, divisor: int) -> int:
    """Return the pixels that training a fold will look at: the unit of Remaining."""
    sizes = [canvas_hw(config, stage, data, divisor) for stage in config.stages]
    plan = plan_epochs(config, len(data.ids))
    return sum(sizes[e.stage][0] * sizes[e.stage][1] * e.batch_size * e.steps for e in plan)


def batches_of(task: Task, data: FoldData, epoch: Epoch, *, first: int = 0, device: str) -> Iterator[Batch]:
    """Yield the batches of an epoch from step ``first`` on.

    They are made between the steps on a CPU, ahead by threads on a GPU.
    """
    for store in (data.images, data.masks):
        store.refuse_truncated()
    counters = (data.seed, data.fold, epoch.stage, epoch.number)
    num = with_copies(len(data.ids), append_flips=task.mirrored_from is not None)
    order = stream(*counters).permutation(num)

    def make(step: int) -> Batch:
        chosen = order[step * epoch.batch_size : (step + 1) * epoch.batch_size].tolist()
        return make_batch(task, names_of(data.ids, chosen), chosen, counters=counters)

    if device == "cpu":
        yield from map(make, range(first, epoch.steps))  # a second busy thread would slow the step five-fold
        return
    yield from prefetch(make, range(first, epoch.steps))


def prefetch(make: Callable[[int], Batch], steps: range, *, threads: int = 4) -> Iterator[Batch]:
    """Yield ``make(step)`` for every step in order, made ahead by threads that call numpy and OpenCV only."""
    with ThreadPoolExecutor(threads) as pool:
        upcoming = iter(steps)
        waiting = [pool.submit(make, step) for step in islice(upcoming, 2 * threads)]
        while waiting:
            yield waiting.pop(0).result()
            waiting.extend(pool.submit(make, step) for step in islice(upcoming, 1))
