"""What is looked at every few seconds of a training under a budget: the cores, and the time left."""

from collections.abc import Sequence

from masksmith.progress import Remaining
from masksmith.training.deadline import Deadline
from masksmith.training.plan import Epoch, lengthen, shorten
from masksmith.training.trainer import Trainer

_GROWTH = 1.1  # a plan is lengthened by a tenth at least
_LATE_AT = 0.8  # after this share of a schedule its rate is too low for steps to come back


class ReplanError(Exception):
    """The steps ahead do not fill the time left, or more than fill it: ``plan`` would."""

    def __init__(self, plan: list[Epoch]) -> None:
        super().__init__(len(plan))
        self.plan = plan


def look_at_the_cores(trainer: Trainer, remaining: Remaining, deadline: Deadline) -> bool:
    """Take another number of threads where that may be faster; return whether it was done."""
    sharing, before = deadline.sharing, trainer.threads
    if sharing is None or not remaining.recent:
        return False
    stage = trainer.plan[trainer.progress.epoch].stage
    slower = deadline.slower(remaining.recent, stage=stage) * deadline.busy
    where = (trainer.data.key, trainer.data.fold, stage)
    threads = sharing.look(slower, seconds=remaining.recent_s, where=where)
    remaining.restart()  # a look at the cores is no step
    if sharing.is_on_trial:
        if threads != before:
            remaining.try_out()
    else:
        remaining.end_trial(believe=threads == before)
    trainer.use_threads(threads, on_trial=sharing.is_on_trial)
    return threads != before


def look_at_the_time(trainer: Trainer, remaining: Remaining, deadline: Deadline) -> None:
    """Raise ReplanError where the steps ahead take longer than the time left, or those left out would fit."""
    if not remaining.pace:
        return
    done, step = trainer.progress.epoch, trainer.progress.step
    slower = deadline.slower(remaining.pace, stage=trainer.plan[done].stage)

    def seconds(plan: Sequence[Epoch]) -> tuple[float, float]:
        paces = {one.stage: deadline.pace_of(one.stage, remaining.pace, slower) for one in plan}
        steps_s = sum(work * paces[stage] for stage, work in trainer.work_by_stage(plan).items())
        due = sum(trainer.is_due(epochs, plan) for epochs in range(done + 1, len(plan) + 1))
        return steps_s, due * trainer.evaluate_s

    share = deadline.share(*seconds(trainer.plan), slower)
    if share is not None:
        raise ReplanError(shorten(trainer.plan, done, step, share))
    now_s = sum(seconds(trainer.plan))
    if _may_grow(trainer) and deadline.has_room(now_s, slower):
        whole_s = sum(seconds(lengthen(trainer.plan, trainer.whole, done, step, 1.0)))
        fits = deadline.fitting(whole_s, slower)
        longer = lengthen(trainer.plan, trainer.whole, done, step, fits)
        if sum(seconds(longer)) > _GROWTH * now_s:
            raise ReplanError(longer)


def _may_grow(trainer: Trainer) -> bool:
    """Whether steps were left out, and would still be trained at a rate that is worth them."""
    done, step = trainer.progress.epoch, trainer.progress.step
    epoch = trainer.plan[done]
    is_over = step == epoch.steps and done + 1 == len(trainer.plan)
    return trainer.replanned and not is_over and epoch.at(step) <= _LATE_AT
