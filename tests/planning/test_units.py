from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksmith.folds.config import ALL
from masksmith.planning.cost import Cost
from masksmith.planning.lengths import cycle_of, whole_epochs, with_epochs
from masksmith.planning.rules import load_rules
from masksmith.planning.units import Reference, next_unit
from masksmith.recipes.recipe import load_recipe
from masksmith.recipes.students import quotas_of

RULES = load_rules()
RECIPE = load_recipe("auto")  # 38 epochs
COST = Cost(train_s=760, epoch_s=28, predict_s=25, view_s=12, finish_s=15, paces=(1e-6, 2e-6))
REFERENCE = Reference(RECIPE, COST, folds=2)


def finish(wish, run="auto-00000000"):
    return replace(wish.unit, run=run, took_s=1.0, joined=True)


def ask(units, left, *, reference=REFERENCE, second=lambda: None):
    return next_unit(reference, units, left, RULES, run_recipe=lambda name: RECIPE, second=second)


def epochs_of(recipe):
    return [stage.epochs for stage in recipe.training.stages]


def test_the_stated_order():
    other = Reference(RECIPE.model_copy(update={"name": "other"}), COST, folds=2)
    units, kinds = [], []
    while (wish := ask(units, 1e5, second=lambda: other)) is not None:
        units.append(finish(wish, run=f"auto-{len(units):08d}"))
        kinds.append((wish.unit.kind, wish.unit.fold))
    folds = [("fold", 0), ("refit", ALL), ("fold", 1)]
    cycles = [("cycle", 0), ("cycle", 1)] * 3
    seeds = [("seed", 0), ("seed", 1)]
    assert kinds == [*folds, *cycles, *seeds, ("recipe", 0), ("recipe", 1), *seeds * 4]
    assert [unit.seed for unit in units if unit.kind == "seed"] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_the_first_fold_takes_what_there_is():
    assert epochs_of(ask([], 800).recipe) == [14, 4, 20]  # all of it
    half = ask([], 420)
    assert sum(epochs_of(half.recipe)) == 19
    assert half.unit.expected_s == pytest.approx(420, abs=1)
    assert ask([], 41) is None


def test_a_further_fold_only_if_enough_of_it_fits():
    first = finish(ask([], 1e5))
    refit = replace(first, kind="refit", fold=ALL)
    assert ask([first, refit], 40 + 0.7 * 760).unit.kind == "fold"
    assert ask([first, refit], 40 + 0.5 * 760).unit.kind == "cycle"
    assert ask([first], 40 + 3 * 28) is None  # shorter than the shortest cycle


def test_all_images_are_trained_once_a_fold_is_and_cost_more():
    reference = replace(REFERENCE, more_images=1.25)
    first = finish(ask([], 1e5))
    assert ask([first], 40 + 0.55 * 1.25 * 760, reference=reference).unit.kind == "fold"  # which is shorter
    wish = ask([first], 40 + 0.8 * 1.25 * 760, reference=reference)
    assert (wish.unit.kind, wish.unit.fold) == ("refit", ALL)
    assert sum(epochs_of(wish.recipe)) == 30  # of 38
    assert wish.unit.expected_s == pytest.approx(40 + 0.8 * 1.25 * 760)
    assert ask([first, finish(wish)], 1e5).unit.kind == "fold"
    assert ask([replace(first, joined=False)], 1e5).unit.kind != "refit"  # nothing shows what it would score


def test_students_come_after_the_folds_round_by_round_where_they_are_asked_for():
    quotas = quotas_of(np.array([0.0, 0.5]), 100)
    reference = replace(REFERENCE, rounds=2, quotas=quotas, more_labels=2.0)
    units = []
    for _ in range(7):
        wish = ask(units, 1e5, reference=reference)
        units.append(finish(wish, run=f"run-{len(units)}"))
    kinds = [(unit.kind, unit.fold) for unit in units[3:]]
    assert kinds == [("pseudo", 0), ("pseudo", 1), ("pseudo", 0), ("pseudo", 1)]
    third = ask(units[:5], 1e5, reference=reference)
    assert [one.run for one in third.recipe.pseudo.teacher_runs] == ["run-3"]  # the student before
    first = ask(units[:3], 40 + 0.7 * 2 * 760, reference=reference)
    assert [one.run for one in first.recipe.pseudo.teacher_runs] == ["run-0"]
    assert first.unit.kind == "pseudo"
    assert sum(epochs_of(first.recipe)) == 26  # of 38
    assert (
        ask(units[:3], 40 + 0.5 * 2 * 760, reference=reference).unit.kind == "cycle"
    )  # too little of it fits
    left_out = [*units[:3], replace(units[3], joined=False), units[4]]
    assert ask(left_out, 1e5, reference=reference).unit.fold == 1  # fold 0 gets no second one
    assert ask(units, 1e5, reference=reference).unit.kind == "cycle"


def test_a_cycle_goes_on_from_the_last_weights_of_its_fold():
    first = finish(ask([], 1e5), run="auto-aaaaaaaa")
    wish = ask([first], 40 + 6.5 * 28)
    assert epochs_of(wish.recipe) == [6]
    assert wish.recipe.training.start_run == "auto-aaaaaaaa"
    (stage,) = wish.recipe.training.stages
    assert stage.optimizer.lr == pytest.approx(RULES.units.cycle_lr_frac * 3e-3)
    assert stage.schedule.name == "cosine"
    assert stage.loss == RECIPE.training.stages[-1].loss
    again = ask([first, finish(wish, run="auto-bbbbbbbb")], 40 + 6.5 * 28)
    assert again.recipe.training.start_run == "auto-bbbbbbbb"


def test_a_second_recipe_is_not_even_looked_at_without_time():
    def second():
        raise AssertionError("measured for nothing")

    done = [finish(ask([], 1e5))]
    assert ask(done, 60, second=second) is None


@given(st.integers(1, 400))
def test_epochs_are_shared_among_the_stages(epochs):
    recipe = with_epochs(RECIPE, epochs, RULES.length)
    shares = epochs_of(recipe)
    assert sum(shares) == epochs
    assert recipe.training.stages[0].optimizer is not None
    if epochs >= RULES.length.single_stage_below:
        assert len(shares) == 3
        assert shares[2] >= shares[0] >= shares[1] >= 1
    else:
        assert [stage.scale for stage in recipe.training.stages] == [1.0]


def test_whole_length():
    assert whole_epochs(RULES.length, 2580) == 38
    assert whole_epochs(RULES.length, 10) == RULES.length.epochs_most
    assert whole_epochs(RULES.length, 10**6) == RULES.length.epochs_least


def test_a_cycle_survives_yaml():
    from masksmith.recipes.recipe import parse_recipe

    cycle = cycle_of(RECIPE, run="auto-00000000", epochs=5, rule=RULES.units)
    assert parse_recipe(cycle.to_yaml(), where="x") == cycle


def test_costs_of_a_slower_machine():
    assert COST.slower(2.0) == Cost(1520, 56, 50, 24, 30, (2e-6, 4e-6))
    assert COST.reserve_s == 40


def test_a_fold_whose_cycle_did_not_join_gets_no_more():
    units = [finish(ask([], 1e5), run="auto-00000000")]
    units.append(finish(ask(units, 1e5), run="auto-00000009"))
    assert units[-1].kind == "refit"
    units.append(finish(ask(units, 1e5), run="auto-00000001"))
    left_out = replace(finish(ask(units, 1e5), run="auto-00000002"), joined=False)
    assert (left_out.kind, left_out.fold) == ("cycle", 0)
    assert [ask([*units, left_out], 1e5).unit.fold for _ in range(1)] == [1]
    failed = [*units[:2], replace(units[2], joined=False)]  # a fold that failed has nothing to go on from
    assert ask(failed, 1e5).unit.fold == 0
    assert ask([*failed, left_out], 1e5).unit.kind == "seed"


def test_a_fold_whose_seed_did_not_join_gets_no_more():
    units = []
    while (wish := ask(units, 1e5)) is not None:
        unit = finish(wish, run=f"auto-{len(units):08d}")
        units.append(
            replace(unit, joined=False) if (unit.kind, unit.fold, unit.seed) == ("seed", 0, 2) else unit
        )
    seeds = [(unit.fold, unit.seed) for unit in units if unit.kind == "seed"]
    assert seeds == [(0, 1), (1, 1), (0, 2), (1, 2), (1, 3), (1, 4), (1, 5)]


def test_units_of_another_recipe_count_for_nothing():
    other = replace(finish(ask([], 1e5)), reference="ffffffff")
    wish = ask([other], 1e5)
    assert (wish.unit.kind, wish.unit.fold) == ("fold", 0)
