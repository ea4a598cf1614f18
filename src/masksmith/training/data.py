"""What a fold is trained on: the sizes of its stages, and the batches of an epoch."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import TypeVar

import numpy as np

from masksmith.augment import Batch, CallableAugment, Drawn, Task, add_seen, build_task, make_batch, names_of
from masksmith.core.arrays import Int
from masksmith.core.errors import InputError
from masksmith.core.randomness import stream
from masksmith.data.store import Arrays, JoinedStore, joined_id
from masksmith.folds.config import fold_name
from masksmith.preprocess import TRUE_SIZE, SizeConfig, canvas_of
from masksmith.training.config import Stage, TrainingConfig
from masksmith.training.epochs import Epoch
from masksmith.training.samplers import fresh_before, is_repeat, seen_before
from masksmith.training.windows import windows_of

Made = TypeVar("Made")

_SUBSET = 0  # number of the random stream of (seed, fold) that a stage's subset is drawn from


@dataclass(frozen=True)
class FoldData:
    """What one fold is trained on."""

    fold: int
    ids: list[str]
    images: Arrays
    masks: Arrays
    seed: int
    key: str = ""
    """Hash of everything that the training depends on; a checkpoint with another key is not continued."""
    size: SizeConfig = TRUE_SIZE
    """How images lie on the canvas."""
    scalars: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Id -> numbers for the model; empty where it takes none."""
    mirror: tuple[int, ...] = ()
    """The class that each class becomes in a mirror image; empty where none changes."""
    custom: CallableAugment | None = None
    """A callable of the user's that the recipe names."""
    weights: dict[str, float] = field(default_factory=dict)
    """Id -> what the loss of an image weighs, 1 where it is not named; empty: losses are those of whole batches."""
    held_out: list[str] = field(default_factory=list)
    """Ids of the images that the fold is validated on; ``scalars`` has theirs too."""
    soft: Arrays | None = None
    """Probabilities 0…255 (uint8) that masks are drawn from instead of ``masks``; None: the masks are certain."""
    taken: dict[str, float] = field(default_factory=dict)
    """Id -> share of the epochs (0…1) that an image takes part in, where it is below 1."""
    pseudo: "FoldData | None" = None
    """Images with pseudo-labels, with their scalars; None where no stage uses any."""

    def of(self, stage: Stage) -> "FoldData":
        """Return what a stage is trained on: these images, those with pseudo-labels, or both in that order.

        Ids of both are ``labelled/ID`` and ``pseudo/ID``: a training and a test image may have the same ID.
        """
        parts, picked = self.parts(stage), self.picked(stage)
        whole = parts[0] if len(parts) == 1 else self._both
        return whole if picked is None else replace(whole, ids=[whole.ids[at] for at in picked])

    def parts(self, stage: Stage) -> list["FoldData"]:
        """Return all that a stage can be trained on, as one or two sets.

        Before the labels are made this can be counted, but nothing read.
        """
        if stage.data == "labelled":
            return [self]
        assert self.pseudo is not None, stage.data  # a recipe without them is refused
        return [self.pseudo] if stage.data == "pseudo" else [self, self.pseudo]

    def picked(self, stage: Stage) -> list[int] | None:
        """Return the positions, ascending, of a stage's images among those of its parts; None: all of them.

        Raises:
            InputError: More images are asked for than there are.
        """
        if stage.subset is None:
            return None
        total = sum(len(part.ids) for part in self.parts(stage))
        count = stage.subset if isinstance(stage.subset, int) else max(1, round(stage.subset * total))
        if count > total:
            raise InputError(
                f"training.stages[…].subset: {count} images, but {self.name} has {total} ({stage.data}); expected at "
                "most as many, a share below 1, or null for all"
            )
        return sorted(stream(self.seed, self.fold, _SUBSET).permutation(total)[:count].tolist())

    def sizes(self, stage: Stage) -> list[tuple[int, int]]:
        """Return the true (height, width) of each image of a stage."""
        found = [part.images.shape(name) for part in self.parts(stage) for name in part.ids]
        picked = self.picked(stage)
        return found if picked is None else [found[at] for at in picked]

    @cached_property
    def _both(self) -> "FoldData":
        assert self.pseudo is not None
        parts = {"labelled": self, "pseudo": self.pseudo}
        return replace(
            self,
            ids=[joined_id(key, name) for key, part in parts.items() for name in part.ids],
            images=JoinedStore({key: part.images for key, part in parts.items()}),
            masks=JoinedStore({key: part.masks for key, part in parts.items()}),
            scalars={
                joined_id(key, name): numbers
                for key, part in parts.items()
                for name, numbers in part.scalars.items()
            },
            weights={joined_id("pseudo", name): weight for name, weight in self.pseudo.weights.items()},
            held_out=[],
            pseudo=None,
        )

    def windows(self, config: TrainingConfig, stage: Stage) -> list[int]:
        """Return how many windows of each image an epoch of a stage looks at."""
        return windows_of(config, self.size, self.sizes(stage))

    def counts(self, config: TrainingConfig) -> list[int]:
        """Return the number of images of each stage, each counted as often as it has windows in an epoch."""
        return [sum(self.windows(config, stage)) for stage in config.stages]

    @property
    def name(self) -> str:
        """The fold's name for people."""
        return fold_name(self.fold).replace("_", " ")


def canvas_hw(config: TrainingConfig, stage: Stage, data: FoldData, divisor: int) -> tuple[int, int]:
    """Return the size that a stage trains at: the largest image (or the crop), scaled and padded to the divisor."""
    sizes = list({data.size.window_hw(hw) for hw in data.sizes(stage)})
    return canvas_of(data.size, sizes, divisor=divisor, scale=stage.scale, crop_hw=config.crop_hw)


def task_of(config: TrainingConfig, stage: Stage, data: FoldData, divisor: int) -> Task:
    """Return what a stage's batches are made from."""
    used = data.of(stage)
    own = {
        "geometry": stage.geometry or config.geometry,
        "intensity": stage.intensity or config.intensity,
        "batch_size": config.batches_of(stage)[0],
    }
    return build_task(
        config.model_copy(update=own),
        images=used.images,
        masks=used.masks,
        ids=used.ids,
        canvas_hw=canvas_hw(config, stage, data, divisor),
        scale=stage.scale,
        size=data.size,
        scalars=used.scalars,
        custom=data.custom,
        mirror=data.mirror,
        soft=_soft_of(data, stage),
    )


def _soft_of(data: FoldData, stage: Stage) -> dict[str, Drawn]:
    """Return the masks that are drawn, by the id that they have in the stage."""
    pseudo = data.pseudo
    if pseudo is None or pseudo.soft is None or stage.data == "labelled":
        return {}
    both = stage.data == "both"
    return {joined_id("pseudo", name) if both else name: Drawn(pseudo.soft, name) for name in pseudo.ids}


@dataclass(frozen=True)
class StepBatches:
    """The batches of one step: their gradients are averaged."""

    batches: list[Batch]
    """Of several processes: this one's part of each (``own_rows``)."""
    indices: list[list[int]]
    """Positions of the images of each batch, of all processes, in the training set of the stage."""
    number: int
    """Which new step of the epoch this is; a repeat has the number of the one that it repeats."""
    weights: list[list[float]] | None = None
    """What the loss of each image weighs; None: the losses are those of the batches."""

    @property
    def images(self) -> int:
        """Images of all batches."""
        return sum(len(one) for one in self.indices)


@dataclass(frozen=True)
class EpochBatches:
    """The batches of an epoch, any of which can be made alone and again."""

    task: Task
    data: FoldData
    """What the epoch's stage is trained on (``FoldData.of``)."""
    epoch: Epoch
    order: Int[np.ndarray, " drawn"]
    """Positions of the images, in the order of training; beyond the last image come mirrored copies. An image comes as
    often as it has windows."""
    place: tuple[int, int] = (0, 1)
    """Number of this process, and how many share each batch."""

    @cached_property
    def seen(self) -> Int[np.ndarray, " drawn"]:
        """How often each drawn image came before in the epoch."""
        return seen_before(self.order)

    def make(self, number: int) -> StepBatches:
        """Make the batches of the ``number``-th new step."""
        parts = [self.order[at].tolist() for at in self._places(number)]
        turns = [self.seen[at].tolist() for at in self._places(number)]
        counters = (self.data.seed, self.data.fold, self.epoch.stage, self.epoch.number)
        names = [names_of(self.data.ids, part) for part in parts]
        batches = [
            self._own_part(own, part, counters, seen)
            for own, part, seen in zip(names, parts, turns, strict=True)
        ]
        given = self.data.weights
        weights = [[given.get(name, 1.0) for name in own] for own in names] if given else None
        return StepBatches(batches, parts, number, weights)

    def _own_part(
        self, names: list[str], indices: list[int], counters: tuple[int, ...], seen: list[int]
    ) -> Batch:
        """Make what this process trains on of a batch; mixed images need the whole batch first."""
        if self.place[1] == 1:
            return make_batch(self.task, names, indices, counters=counters, seen=seen)
        rows = own_rows(len(names), *self.place)
        if self.task.mixing.is_on:
            return make_batch(self.task, names, indices, counters=counters, seen=seen).of_rows(rows)
        own = [[many[at] for at in rows] for many in (indices, seen)]
        return make_batch(self.task, [names[at] for at in rows], own[0], counters=counters, seen=own[1])

    def coverage(self, name: str) -> Int[np.ndarray, "h w"]:
        """Return how often the windows of the epoch look at each pixel of an image; distortions are left out."""
        counters = (self.data.seed, self.data.fold, self.epoch.stage, self.epoch.number)
        index = self.data.ids.index(name)
        found = np.zeros(self.data.images.shape(name), np.int64)
        for at in np.flatnonzero(self.order % len(self.data.ids) == index).tolist():
            add_seen(found, self.task, name, int(self.order[at]), counters=counters, seen=int(self.seen[at]))
        return found

    def _places(self, number: int) -> list[slice]:
        """Return where the batches of a step lie in the order.

        Where the images end within a step, its last batch is smaller; one image left over after others is left out, as
        batch norm would see it alone.
        """
        size, first = self.epoch.batch_size, number * self.epoch.images
        end = min(first + self.epoch.images, len(self.order))
        if size > 1 and end - first > size and (end - first) % size == 1:
            end -= 1
        return [slice(at, min(at + size, end)) for at in range(first, end, size)]

    def new(self, numbers: range, *, device: str) -> Generator[StepBatches, None, None]:
        """Yield new steps in turn: made between the steps on a CPU, ahead by threads on a GPU."""
        if device == "cpu":
            yield from map(self.make, numbers)  # a second busy thread would slow the step five-fold
            return
        yield from prefetch(self.make, numbers)

    def steps(
        self, *, first: int, repeat_worst_of: int | None, worst: Callable[[int], int], device: str
    ) -> Iterator[StepBatches]:
        """Yield the steps of the epoch from ``first`` on.

        Args:
            first: Finished steps.
            repeat_worst_of: After so many new steps comes the worst of them again; None: no repeats.
            worst: Returns the place (0…) of the worst among so many last steps.
            device: "cpu", or another one, for which batches are made ahead.
        """
        last = fresh_before(self.epoch.steps, repeat_worst_of)
        new = self.new(range(fresh_before(first, repeat_worst_of), last), device=device)
        with closing(new):  # its threads end with it
            for step in range(first, self.epoch.steps):
                if repeat_worst_of is not None and is_repeat(step, repeat_worst_of):
                    group = fresh_before(step, repeat_worst_of) - repeat_worst_of
                    yield self.make(group + worst(repeat_worst_of))
                else:
                    yield next(new)


def own_rows(count: int, rank: int, size: int) -> list[int]:
    """Return which of ``count`` images of a batch process ``rank`` of ``size`` takes: equal parts, in turn.

    Where it does not divide (the last batch of an epoch) the last image comes more often; what is beyond ``count`` is
    dropped when the parts are put together.
    """
    each = -(-count // size)
    return [min(at, count - 1) for at in range(rank * each, (rank + 1) * each)]


def prefetch(make: Callable[[int], Made], steps: range, *, threads: int = 4) -> Iterator[Made]:
    """Yield ``make(step)`` for every step in order, made ahead by threads that call numpy and OpenCV only."""
    with ThreadPoolExecutor(threads) as pool:
        upcoming = iter(steps)
        waiting = [pool.submit(make, step) for step in islice(upcoming, 2 * threads)]
        while waiting:
            yield waiting.pop(0).result()
            waiting.extend(pool.submit(make, step) for step in islice(upcoming, 1))
