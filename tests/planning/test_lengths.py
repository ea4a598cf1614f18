import pytest

from masksmith.planning.lengths import cycle_of, with_epochs
from masksmith.planning.rules import load_rules
from masksmith.recipes.recipe import load_recipe, parse_recipe
from masksmith.steps.resolve import check_prediction
from masksmith.training.machine import settle_machine
from tests.blends import write_pupil, write_recipe

RULES = load_rules()
RESTARTS = ("training.stages.0.schedule={name: cosine_restarts, cycles: 2}",)


def again(recipe):
    """A planned recipe is written and read again; what it holds must then be valid."""
    return parse_recipe(recipe.to_yaml(), where="planned")


@pytest.mark.parametrize(("epochs", "cycles"), [(19, 1), (20, 2), (9, 1)])
def test_cycles_still_divide_a_planned_length(epochs, cycles):
    planned = again(with_epochs(load_recipe("auto", RESTARTS), epochs, RULES.length))
    assert planned.training.stages[0].schedule.cycles == cycles


def test_averaging_still_begins_before_the_end():
    late = load_recipe("auto", ("training.swa={start: 30}", "training.select=swa"))
    assert again(with_epochs(late, 12, RULES.length)).training.swa.start == 12
    assert again(with_epochs(late, 34, RULES.length)).training.swa.start == 30


def test_a_cosine_cycle_has_no_cycles_to_average():
    made = load_recipe("auto", (*RESTARTS, "training.swa={every: cycle}", "training.select=swa"))
    cycle = again(cycle_of(made, run="x-1", epochs=5, rule=RULES.units))
    assert (cycle.training.swa, cycle.training.select) == (None, "last")


def test_a_cosine_cycle_starts_from_the_run_and_no_best_epoch():
    start = (
        "training.stages.2={start: best, epochs: 3, loss: [{name: bce}], optimizer: {name: adam, lr: 0.001}}"
    )
    made = load_recipe("auto", (start,))
    assert made.training.stages[2].start == "best"
    cycle = again(cycle_of(made, run="x-1", epochs=5, rule=RULES.units))
    assert cycle.training.stages[0].start == "previous"
    assert again(with_epochs(made, 12, RULES.length)).training.stages[2].start == "best"


def test_a_cosine_cycle_trains_everything_to_its_end():
    changes = ("training.stages.2.until_plateau={patience: 1}", "training.stages.2.freeze=[encoder]")
    cycle = again(cycle_of(load_recipe("auto", changes), run="x-1", epochs=5, rule=RULES.units))
    (stage,) = cycle.training.stages
    assert (stage.until_plateau, stage.freeze) == (None, [])


@pytest.mark.parametrize(("last", "keeps"), [("labelled", False), ("both", True)])
def test_labels_that_no_stage_of_a_cycle_uses_are_left_out(tmp_path, last, keeps):
    pupil = write_pupil(tmp_path, "p", write_recipe(tmp_path, "t"), data=("pseudo", "labelled", last))
    cycle = again(cycle_of(load_recipe(pupil), run="x-1", epochs=5, rule=RULES.units))
    assert (cycle.pseudo is not None) == keeps


def test_weights_that_a_planned_training_does_not_keep_do_not_predict():
    made = load_recipe("auto", (*RESTARTS, "prediction.weights=snapshots"))
    assert again(with_epochs(made, 20, RULES.length)).prediction.weights == "snapshots"
    cycle = again(cycle_of(made, run="x-1", epochs=5, rule=RULES.units))
    assert cycle.prediction == made.prediction.model_copy(update={"weights": "final"})
    check_prediction(cycle.model_copy(update={"training": settle_machine(cycle.training)}))
    weighted = made.model_copy(
        update={"prediction": made.prediction.model_copy(update={"snapshot_weights": [1.0] * 9})}
    )
    assert again(with_epochs(weighted, 20, RULES.length)).prediction == made.prediction  # of another number
    assert again(cycle_of(weighted, run="x-1", epochs=5, rule=RULES.units)).prediction == cycle.prediction
    late = load_recipe("auto", (RESTARTS[0].replace("stages.0", "stages.2"), "prediction.weights=snapshots"))
    assert again(with_epochs(late, 4, RULES.length)).prediction.weights == "final"


@pytest.mark.parametrize(("top_k", "weights"), [(2, "top_k"), (0, "final")])
def test_the_best_epochs_predict_where_they_are_kept(top_k, weights):
    made = load_recipe("auto", (f"training.top_k={top_k}", "prediction.weights=top_k"))
    assert again(cycle_of(made, run="x-1", epochs=5, rule=RULES.units)).prediction.weights == weights


def test_a_single_stage_trains_everything_on_the_images_of_the_last():
    made = load_recipe(
        "auto",
        (
            "training.stages.0.freeze=[encoder]",
            "training.stages.0.until_plateau={patience: 1}",
            "training.stages.0.sampler={name: curriculum}",
            "training.stages.0.geometry=none",
            "training.stages.2.intensity=heavy",
            "training.stages.2.sampler={name: class_aware}",
        ),
    )
    first, last = made.training.stages[0], made.training.stages[-1]
    (single,) = again(with_epochs(made, 4, RULES.length)).training.stages
    assert (single.epochs, single.freeze, single.until_plateau) == (4, [], None)
    assert (single.geometry, single.intensity, single.sampler) == (None, last.intensity, last.sampler)
    assert single.sampler.name == "class_aware"
    assert (single.loss, single.optimizer, single.schedule) == (first.loss, first.optimizer, first.schedule)
