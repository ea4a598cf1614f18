import pytest

from masksmith.core.errors import InputError
from masksmith.training import ScheduleConfig, StallConfig, SwaConfig
from masksmith.training.refit import refit_config, refuse_refit, refuse_scores
from tests.training.tiny import config, stage

ON = {"optimizer": None, "schedule": None}


def test_as_long_as_the_folds_were():
    settings = config(
        stage(9, until_plateau=StallConfig()),
        stage(9).model_copy(update=ON),
        early_stop=StallConfig(),
        select="best",
        keep=["best_score", "best_loss"],
        top_k=2,
    )
    refit = refit_config(settings, [[3, 4], [5, 9], [4, 6]])
    assert [one.epochs for one in refit.stages] == [4, 6]
    assert (refit.early_stop, refit.select, refit.keep, refit.top_k) == (None, "last", ["best_loss"], 0)
    assert all(one.until_plateau is None for one in refit.stages)
    assert refit.stages[1].schedule is None
    assert [one.epochs for one in refit_config(settings, [[3, 4], [5, 9]]).stages] == [
        5,
        9,
    ]  # of two the longer


def test_a_stage_that_was_not_reached_hands_on_what_the_next_needs():
    new = ScheduleConfig(name="cosine")
    settings = config(stage(2), stage(3, schedule=new), stage(4).model_copy(update=ON))
    refit = refit_config(settings, [[2, 0, 1]])
    assert [one.epochs for one in refit.stages] == [2, 1]
    assert refit.stages[1].schedule == new
    assert refit.stages[1].optimizer == settings.stages[1].optimizer
    assert [one.epochs for one in refit_config(settings, [[2, 0, 0]]).stages] == [2]


def test_cycles_keep_their_length():
    restarts = ScheduleConfig(name="cosine_restarts", cycles=2)
    settings = config(stage(3), stage(4, schedule=restarts))
    assert [one.epochs for one in refit_config(settings, [[2, 3]]).stages] == [2, 4]


def test_lengths_of_another_training():
    with pytest.raises(InputError, match=r"refit: lengths \[\[1, 2\]\]; .* with 1 numbers"):
        refit_config(config(), [[1, 2]])
    with pytest.raises(InputError, match=r"refit: lengths \[\]"):
        refit_config(config(), [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (config(select="best"), r"training.select: 'best' needs a score, but no image is held out"),
        (config(select="best_val_loss"), r"training.select: 'best_val_loss' needs a score"),
        (config(stage(), stage(start="best")), r"training.stages\[1\].start: 'best' needs a score"),
        (config(early_stop=StallConfig(watch="val_loss")), r"training.early_stop.watch: 'val_loss' needs"),
        (config(keep=["best_score"]), r"training.keep: 'best_score' needs a score"),
        (config(top_k=3), r"training.top_k: 3 needs"),
        (config(early_stop=StallConfig()), r"training.early_stop.watch: 'score' needs"),
        (
            config(stage(until_plateau=StallConfig())),
            r"training.stages\[0\].until_plateau.watch: 'score' needs",
        ),
        (
            config(stage(), stage(schedule=ScheduleConfig(name="plateau"))),
            r"training.stages\[1\].schedule.watch: 'score' needs",
        ),
    ],
)
def test_what_needs_a_score(settings, message):
    with pytest.raises(InputError, match=message):
        refuse_scores(settings)


@pytest.mark.parametrize(("start", "expected"), [(8, 5), (5, 5), (3, 3), (0.75, 0.75)])
def test_weights_are_averaged_from_the_last_epoch_on_where_the_start_lies_behind_it(start, expected):
    settings = config(stage(10), swa=SwaConfig(start=start), select="swa")
    assert refit_config(settings, [[5], [4], [9]]).swa == SwaConfig(start=expected)


def test_a_refit_that_needs_a_score_is_refused_by_the_stage_that_was_asked_for():
    """The first stage is left out of the refit, which would count the second as stages[0]."""
    settings = config(stage(), stage(schedule=ScheduleConfig(name="plateau")))
    refuse_refit(config(stage(until_plateau=StallConfig()), early_stop=StallConfig(), select="best", top_k=1))
    wanted = r"training\.stages\[1\]\.schedule\.watch: 'score' needs a score, but the refit on all images"
    with pytest.raises(InputError, match=wanted):
        refuse_refit(settings)
    with pytest.raises(InputError, match=wanted):
        refit_config(settings, [[0, 4]])


def test_the_refit_has_no_best_epoch_to_start_from_and_none_to_end_with():
    refit = refit_config(config(stage(3), stage(4, start="best"), select="best_val_loss"), [[3, 2]])
    assert [(one.start, one.epochs) for one in refit.stages] == [("previous", 3), ("previous", 2)]
    assert refit.select == "last"
    schedule = ScheduleConfig(name="plateau", watch="val_loss")
    with pytest.raises(InputError, match=r"stages\[0\]\.schedule\.watch: 'val_loss' needs a score"):
        refuse_refit(config(stage(schedule=schedule)))


def test_what_needs_none():
    by_loss = StallConfig(watch="loss")
    plateau = ScheduleConfig(name="plateau", watch="loss")
    refuse_scores(
        config(stage(until_plateau=by_loss, schedule=plateau), early_stop=by_loss, keep=["best_loss"])
    )
    with pytest.raises(InputError, match=r"schedule\.watch: 'score'"):
        refit_config(config(stage(schedule=ScheduleConfig(name="plateau"))), [[4]])
