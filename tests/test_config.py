import pytest

from masksmith.config import apply_overrides, look_up, read_yaml, suggest, write_yaml
from masksmith.errors import InputError

RECIPE = {"training": {"stages": [{"epochs": 4, "optimizer": None}], "lr": 1e-3}, "name": "x"}


def test_numbers_with_an_exponent_are_numbers():
    assert read_yaml("a: 1e-3\nb: 1.5E+2\nc: -.5\nd: 12\ne: 1_0e1", where="x") == {
        "a": 0.001,
        "b": 150.0,
        "c": -0.5,
        "d": 12,
        "e": 100.0,
    }


def test_round_trip():
    value = {"b": [1, 2.5, None, True], "a": {"text": "on", "number": "1e-3"}}
    assert read_yaml(write_yaml(value), where="x") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "x.yaml: line 2: not valid YAML: the key 'a' stands twice"),
        ("a: [1", "x.yaml: line 1: not valid YAML"),
        ("a: !!python/object:os.system 1", "not valid YAML: could not determine a constructor"),
    ],
)
def test_bad_yaml(text, message):
    with pytest.raises(InputError, match=message):
        read_yaml(text, where="x.yaml")


def test_overrides():
    changed = apply_overrides(RECIPE, ["training.stages.0.epochs=3", "training.lr=2e-4", "name=y"])
    assert changed == {"training": {"stages": [{"epochs": 3, "optimizer": None}], "lr": 2e-4}, "name": "y"}
    assert RECIPE["name"] == "x"


def test_override_opens_an_empty_part():
    changed = apply_overrides(RECIPE, ["training.stages.0.optimizer.lr=1"])
    assert changed["training"]["stages"][0]["optimizer"] == {"lr": 1}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stages.0.epoch=3", "no key 'epoch'; did you mean 'epochs'"),
        ("training.stages.1.epochs=3", "'1' is not an item of a list of 1; expected 0 to 0"),
        ("name.first=3", "'first' would lie inside the value 'x'"),
        ("name", "expected KEY=VALUE"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(InputError, match=message) as caught:
        apply_overrides(RECIPE, [override])
    assert str(caught.value).startswith(f"--set {override}: ")


def test_suggestions():
    assert suggest("epoch", ["epochs", "loss"]) == "did you mean 'epochs'? Known: epochs, loss"
    assert suggest("zzz", ["epochs"]) == "Known: epochs"
    assert look_up({"a": 1}, "a", where="x") == 1
