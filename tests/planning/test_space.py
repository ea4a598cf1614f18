import math

import pytest

from masksmith.core.errors import InputError
from masksmith.planning.space import (
    Choice,
    Range,
    check_space,
    parse_grid,
    parse_space,
    read_space,
    values_in,
    with_values,
)
from masksmith.recipes.recipe import load_recipe

RATE = "training.stages.0.optimizer.lr"


def test_what_a_space_may_say():
    space = parse_space(
        f"{RATE}: {{low: 1e-4, high: 1e-2, log: true}}\n"
        "training.batch_size: {low: 8, high: 32, int: true, step: 8}\n"
        "model.encoder: {values: [resnet18, resnet34]}\n",
        where="s.yaml",
    )
    rate, batch, encoder = space.axes.values()
    assert space.count == rate.count == math.inf
    assert rate.of_param(0.00123456) == 0.001235
    assert rate.corners == [1e-4, 1e-2]
    assert batch.every == [8, 16, 24, 32]
    assert all(type(one) is int for one in batch.every)
    assert (batch.holds(16), batch.holds(17), batch.holds("16"), batch.holds(True)) == (
        True,
        False,
        False,
        False,
    )
    assert (rate.holds(0.005), rate.holds(0.02)) == (True, False)
    assert encoder.of_param(encoder.to_param("resnet34")) == "resnet34"
    assert parse_space(space.to_yaml(), where="again") == space
    few = parse_space("training.batch_size: {values: [8, 16]}\nseed_of: {values: [a, b]}", where="s")
    assert few.combinations()[1] == {"training.batch_size": 8, "seed_of": "b"}


def test_all_mistakes_of_a_space_come_at_once(tmp_path):
    text = """
    a: {low: 2, high: 1}
    b: {low: 0, high: 1, log: true}
    c: [1, 2]
    d: {values: []}
    e: {lo: 1, high: 2}
    f: {low: 0.5, high: 2, int: true}
    g: {low: 1, high: 2, log: true, step: 0.5}
    h: {low: 0, high: 1, step: 0.3}
    """
    with pytest.raises(InputError) as error:
        parse_space(text, where="s.yaml")
    said = str(error.value)
    for part in (
        "s.yaml: a: : low 2 and high 1; expected low < high",
        "s.yaml: b: : low 0 with log: true; expected more than 0",
        "s.yaml: c: [1, 2]; expected {low: …, high: …} or {values: […]}",
        "s.yaml: d: values:",
        "s.yaml: e: lo: unknown key; did you mean 'low'?",
        "s.yaml: f: : low 0.5, high 2 with int: true; expected whole numbers",
        "s.yaml: g: : step 0.5 with log: true; expected one of them",
        "s.yaml: h: : step 0.3 does not lead from 0 to 1",
    ):
        assert part.replace(": : ", ": ") in said.replace(": : ", ": ")
    with pytest.raises(InputError, match=r"s: no keys; expected a key of a recipe"):
        parse_space("[]", where="s")
    with pytest.raises(InputError, match=r"--space .*none.yaml: cannot be read"):
        read_space(tmp_path / "none.yaml")


def test_a_space_is_checked_against_the_recipe():
    recipe = load_recipe("smoke")
    wrong = {
        "training.batch_sise": "s: training.batch_sise: no key 'batch_sise'; did you mean 'batch_size'?",
        "training.batch_size": "s: training.batch_size: 0.5 is refused: training.batch_size: 0.5 is a number",
        "training.geometry.hflip": "s: training.geometry.hflip: 3.0 is refused",
        "folds.count": "s: folds.count cannot be searched: all trials are judged on the same folds",
        "tuning.most_masks": "s: tuning.most_masks cannot be searched: trials are judged at threshold 0.5",
        "training.threads.a": "'a' would lie inside the value 1",
    }
    space = parse_space("\n".join(f"{key}: {{low: 0.5, high: 3}}" for key in wrong), where="s")
    with pytest.raises(InputError) as error:
        check_space(space, recipe, where="s")
    for part in wrong.values():
        assert part in str(error.value)
    assert "; add int: true" in str(error.value)
    check_space(parse_space(f"{RATE}: {{low: 1e-3, high: 1e-1}}", where="s"), recipe, where="s")


def test_values_are_set_as_by_hand():
    recipe = load_recipe("smoke")
    changed = with_values(recipe, {RATE: 0.5, "model.decoder_channels": [16, 8, 8]})
    assert changed == load_recipe("smoke", (f"{RATE}=0.5", "model.decoder_channels=[16, 8, 8]"))
    space = parse_space(f"{RATE}: {{low: 0, high: 1}}\nmodel.decoder_channels: {{values: [[1]]}}", where="s")
    assert values_in(changed, space) == {RATE: 0.5, "model.decoder_channels": [16, 8, 8]}
    assert with_values(recipe, {}) is recipe


def test_a_grid_and_what_is_fixed():
    fixed, grid = parse_grid(["a=1", "b=1,2e-3", "c=[1, 2],[3]", "d=x,null"])
    assert fixed == ("a=1",)
    assert grid.count == 8
    assert grid.combinations()[0] == {"b": 1, "c": [1, 2], "d": "x"}
    assert grid.combinations()[-1] == {"b": 2e-3, "c": [3], "d": None}
    with pytest.raises(InputError) as error:
        parse_grid(["a", "b=", "c=1,2", "c=3", "d=1,1", "e=[1"])
    for part in (
        "--set a: expected KEY",
        "--set b=: expected",
        "--set c=3: c comes twice",
        "d=1,1: a value",
        "[1",
    ):
        assert part in str(error.value)
    with pytest.raises(InputError, match="no key of several values"):
        parse_grid(["a=1"])


def test_a_recipes_own_value_is_one_of_the_list_whatever_its_type():
    choice = Choice(values=[1, 5, 10])
    assert choice.holds(5.0)
    assert choice.to_param(5.0) == choice.to_param(5) == "5"
    assert not choice.holds(True)
    whole = Range(low=7, high=9, int=True)
    assert whole.holds(8.0)
    assert not whole.holds(8.4)
