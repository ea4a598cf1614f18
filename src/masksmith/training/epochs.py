"""The epochs of a training, in order, and the rules that make what lies ahead shorter or longer.

``build_epochs`` lists the epochs of all stages. ``shorten`` keeps a share of the steps ahead and compresses the
learning-rate schedule with them, so that the rate still reaches its final value. ``unshortened`` brings back what was
left out ahead. Pure functions; ``pace.py`` decides when they are called.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from masksmith.augment import with_copies
from masksmith.training.config import ScheduleConfig, Stage, TrainingConfig


@dataclass(frozen=True)
class Epoch:
    """One epoch: its stage, its number of steps, and where it lies in the span of its schedule.

    A span is the stages that share one schedule; step s of the epoch lies at ``at_start + s * at_step`` of it (0…1).
    """

    stage: int
    number: int
    """Number of the epoch within its stage."""
    batch_size: int
    steps: int
    schedule: ScheduleConfig
    span: int
    at_start: float
    at_step: float
    starts_optimizer: bool
    accumulate: int = 1
    stage_at: float = 0.0
    """Progress of the stage: 0 for the first epoch of several, 1 for the last one."""

    @property
    def images(self) -> int:
        """Images of a step."""
        return self.batch_size * self.accumulate

    def at(self, step: int) -> float:
        """Return the progress of the schedule (0…1) at a step."""
        return self.at_start + step * self.at_step

    def to_json(self) -> dict[str, Any]:
        """Return the epoch as plain values."""
        return {**asdict(self), "schedule": self.schedule.model_dump(mode="json")}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Epoch":
        """Return the epoch that ``to_json`` wrote."""
        return cls(**{**value, "schedule": ScheduleConfig(**value["schedule"])})


def steps_of(config: TrainingConfig, stage: Stage, num_images: int) -> int:
    """Return the steps of an epoch of a stage: whole batches, and repeats of the worst ones."""
    size, accumulate = config.batches_of(stage)
    fresh = max(1, with_copies(num_images, config.augment.append_flips) // (size * accumulate))
    repeat = (stage.sampler or config.sampler).repeat_worst_of
    return fresh + (fresh // repeat if repeat else 0)


def build_epochs(config: TrainingConfig, num_images: int | Sequence[int]) -> list[Epoch]:
    """Return the epochs of all stages; the last, incomplete batch of an epoch is left out.

    Args:
        config: The training.
        num_images: Images of every stage, or of each.
    """
    counts = [num_images] * len(config.stages) if isinstance(num_images, int) else num_images
    steps = [steps_of(config, stage, count) for stage, count in zip(config.stages, counts, strict=True)]
    epochs: list[Epoch] = []
    for number, span in enumerate(config.spans()):
        done, length = 0, sum(config.stages[i].epochs * steps[i] for i in span)
        schedule = config.stages[span[0]].schedule
        assert schedule is not None
        for i in span:
            stage = config.stages[i]
            batch, accumulate = config.batches_of(stage)
            for epoch in range(stage.epochs):
                fresh = bool(epochs) and epoch == 0 and stage.optimizer is not None
                at = (done / length, 1 / length)
                epochs.append(Epoch(i, epoch, batch, steps[i], schedule, number, *at, fresh, accumulate))
                done += steps[i]
    return _place_in_stages(epochs, 0)


def _place_in_stages(epochs: Sequence[Epoch], first: int) -> list[Epoch]:
    """Return the epochs with ``stage_at`` recomputed from epoch ``first`` on."""
    counts = Counter(epoch.stage for epoch in epochs)
    ahead = [replace(one, stage_at=one.number / max(1, counts[one.stage] - 1)) for one in epochs[first:]]
    return [*epochs[:first], *ahead]


# --- what lies ahead ----------------------------------------------------------------------------------------


def work_ahead(
    epochs: Sequence[Epoch], canvases: Sequence[tuple[int, int]], index: int = 0, step: int = 0
) -> dict[int, int]:
    """Return stage -> pixels of all steps that lie ahead.

    Args:
        epochs: All epochs.
        canvases: Height and width of each stage.
        index: The epoch under way.
        step: Its finished steps.
    """
    work: dict[int, int] = {}
    for offset, epoch in enumerate(epochs[index:]):
        height, width = canvases[epoch.stage]
        steps = epoch.steps - (step if offset == 0 else 0)
        work[epoch.stage] = work.get(epoch.stage, 0) + height * width * epoch.images * steps
    return work


def starts_from_best(config: TrainingConfig, epochs: Sequence[Epoch], done: int) -> bool:
    """Whether a stage that starts from the best epoch begins after ``done`` epochs."""
    if not 0 < done < len(epochs) or epochs[done].stage == epochs[done - 1].stage:
        return False
    return config.stages[epochs[done].stage].start == "best"


def is_scored(config: TrainingConfig, epochs: Sequence[Epoch], done: int) -> bool:
    """Whether the fold is scored after ``done`` epochs."""
    last = done == len(epochs) or starts_from_best(config, epochs, done)
    return last or done % config.evaluate_every == 0


# --- other lengths ------------------------------------------------------------------------------------------


def shorten(epochs: Sequence[Epoch], index: int, step: int, share: float) -> list[Epoch]:
    """Return the epochs with only ``share`` of the steps ahead, in the same proportions of the stages.

    Schedules are compressed, so that the learning rate still ends where it was meant to end. The epoch under way may
    end in its middle, and so may the last one of each stage.

    Args:
        epochs: All epochs.
        index: The epoch under way.
        step: Its finished steps.
        share: 0…1; with 0 the training ends here (a first step is always made).
    """
    ahead = [replace(epochs[index], steps=epochs[index].steps - step), *epochs[index + 1 :]]
    kept = _keep_steps(ahead, share)
    if not sum(kept) and not index and not step:
        kept[0] = 1
    return _compress(epochs, index, step, kept)


def unshortened(epochs: Sequence[Epoch], whole: Sequence[Epoch], index: int) -> list[Epoch]:
    """Return the epochs with all that ``whole`` has from the epoch under way on.

    What was left out before it stays left out. Only steps and order count: ``shorten`` with a share of 1 gives the
    schedule, which goes on from where it is, so that the learning rate never jumps up.
    """
    now = epochs[index]
    at = (now.stage, now.number)
    place = next((i for i, one in enumerate(whole) if (one.stage, one.number) == at), None)
    if place is None:  # it has grown beyond what is the whole now
        return list(epochs)
    under_way = replace(now, steps=whole[place].steps)  # its images were drawn for its place
    return [*epochs[:index], under_way, *whole[place + 1 :]]


def end_stage(epochs: Sequence[Epoch], done: int) -> list[Epoch]:
    """Return the epochs without the rest of the stage that the last of ``done`` epochs belongs to.

    A schedule that goes on in later stages is compressed, so that it still ends where it was meant to end.
    """
    if done == len(epochs) or epochs[done].stage != epochs[done - 1].stage:
        return list(epochs)
    kept = [0 if epoch.stage == epochs[done - 1].stage else epoch.steps for epoch in epochs[done:]]
    return _compress(epochs, done, 0, kept)


def _compress(epochs: Sequence[Epoch], index: int, step: int, kept: Sequence[int]) -> list[Epoch]:
    """Return the epochs with ``kept`` steps of each from step ``step`` of epoch ``index`` on."""
    ahead = epochs[index:]
    lengths: dict[int, int] = {}
    for epoch, steps in zip(ahead, kept, strict=True):
        lengths[epoch.span] = lengths.get(epoch.span, 0) + steps
    at = {epochs[index].span: epochs[index].at(step)}
    rates = {span: max(0.0, 1 - at.get(span, 0.0)) / max(1, length) for span, length in lengths.items()}
    shorter, fresh = list(epochs[:index]), False
    for offset, (epoch, steps) in enumerate(zip(ahead, kept, strict=True)):
        done, fresh = step if offset == 0 else 0, fresh or epoch.starts_optimizer
        if not done + steps:
            continue  # an optimizer that it starts is handed on
        start, rate = at.get(epoch.span, 0.0), rates[epoch.span]
        placed = replace(epoch, steps=done + steps, at_start=start - done * rate, at_step=rate)
        shorter.append(replace(placed, starts_optimizer=fresh))
        at[epoch.span], fresh = start + steps * rate, False
    # the images of an epoch under way were drawn for its place, which stays
    return _place_in_stages(shorter, index + 1 if step else index)


def _keep_steps(ahead: Sequence[Epoch], share: float) -> list[int]:
    """Return how many steps of each epoch stay: the first ones of each stage, ``share`` of the stage's steps."""
    quota: dict[int, int] = {}
    for stage in {epoch.stage for epoch in ahead}:
        quota[stage] = int(share * sum(epoch.steps for epoch in ahead if epoch.stage == stage))
    kept = []
    for epoch in ahead:
        kept.append(min(epoch.steps, quota[epoch.stage]))
        quota[epoch.stage] -= kept[-1]
    return kept
