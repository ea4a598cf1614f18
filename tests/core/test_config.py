import pytest

from masksmith.core.config import apply_overrides, look_up, read_yaml, suggest, write_yaml
from masksmith.core.errors import InputError

RECIPE = {"training": {"stages": [{"epochs": 4, "optimizer": None}], "lr": 1e-3}, "name": "x"}
LIST = {"stages": [1, 2, 3, 4]}


def test_yaml_is_read_as_it_is_written():
    numbers = read_yaml("a: 1e-3\nb: 1.5E+2\nc: -.5\nd: 12\ne: 1_0e1", where="x")
    assert numbers == {"a": 0.001, "b": 150.0, "c": -0.5, "d": 12, "e": 100.0}
    value = {"b": [1, 2.5, None, True], "a": {"text": "on", "number": "1e-3"}}
    assert read_yaml(write_yaml(value), where="x") == value
    assert read_yaml("a: &a [1, 2]\nb: *a", where="x") == {"a": [1, 2], "b": [1, 2]}


def test_bad_yaml():
    read_as_date = r"x.yaml: a value cannot be read \(datetime.date.* is read as date\); put it in quotes"
    for text, message in (
        ("a: 1\na: 2", "x.yaml: line 2: not valid YAML: duplicate key 'a'"),
        ("a: [1", "x.yaml: line 1: not valid YAML"),
        ("a: !!python/object:os.system 1", "not valid YAML: could not determine a constructor"),
        ("? [a]\n: 1", "x.yaml: line 1: not valid YAML: a key must be text or a number"),
        ("a: 2020-01-01", read_as_date),
        ("a: 2020-99-99", "x.yaml: a value cannot be read .month must be in"),
        ("a: !!set {b}", "x.yaml: a value cannot be read .* is read as set"),
        (f"a: {'1' * 5000}", "x.yaml: a value cannot be read .Exceeds the limit"),
        ("[" * 5000, "x.yaml: nested too deeply to be a recipe"),
        ("a: &a [*a]", "x.yaml: line 1: not valid YAML: found unconstructable recursive node"),
        ("&a [*a]", "x.yaml: nested too deeply to be a recipe"),
        ("a: " + "x" * 300_000, "x.yaml: 300,003 characters; expected a recipe, at most 262,144"),
    ):
        with pytest.raises(InputError, match=message):
            read_yaml(text, where="x.yaml")


def test_a_billion_laughs():
    lines = ["l0: &l0 ha", *(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10))]
    text = "\n".join(lines)
    with pytest.raises(
        InputError, match=r"x\.yaml: it expands to more than 100,000 values; write the values"
    ):
        read_yaml(text, where="x.yaml")
    with pytest.raises(InputError, match="it expands to more than 100,000 values"):
        read_yaml(text.replace("[", "{k: [").replace("]", "]}"), where="x.yaml")
    with pytest.raises(InputError, match=r"(?s)--set name=.*it expands"):
        apply_overrides(RECIPE, [f"name={text}"])
    with pytest.raises(InputError, match="a key must be text or a number"):  # as text it would be endless
        read_yaml(text + "\n? *l9\n: 1", where="x.yaml")


def test_overrides():
    changed = apply_overrides(RECIPE, ["training.stages.0.epochs=3", "training.lr=2e-4", "name=y"])
    assert changed == {"training": {"stages": [{"epochs": 3, "optimizer": None}], "lr": 2e-4}, "name": "y"}
    assert RECIPE["name"] == "x"
    changed = apply_overrides(RECIPE, ["training.stages.0.optimizer.lr=1"])  # null becomes a table
    assert changed["training"]["stages"][0]["optimizer"] == {"lr": 1}
    for override, expected in (
        ("stages.2:=[]", [1, 2]),
        ("stages.1:=[7, 8, 9, 10]", [1, 7, 8, 9, 10]),
        ("stages.4:=[5]", [1, 2, 3, 4, 5]),
        ("stages.0:=[]", []),
    ):
        assert apply_overrides(LIST, [override]) == {"stages": expected}
    assert LIST == {"stages": [1, 2, 3, 4]}


def test_bad_overrides():
    for value, override, message in (
        (RECIPE, "training.stages.0.epoch=3", "no key 'epoch'; did you mean 'epochs'"),
        (RECIPE, "training.stages.1.epochs=3", "'1' is not an item of a list of 1; expected 0 to 0"),
        (RECIPE, "name.first=3", "'first' would lie inside the value 'x'"),
        (RECIPE, "name", "expected KEY=VALUE"),
        (LIST, "stages.5:=[]", "'5' is not a position in a list of 4; expected 0 to 4"),
        (LIST, "stages.-1:=[]", "'-1' is not a position"),
        (LIST, "stages.2:=7", "7 is a whole number; items of a list are replaced by a list"),
        (LIST, "stages.2:.x=7", "'2:' is not an item of a list of 4"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            apply_overrides(value, [override])
        assert str(caught.value).startswith(f"--set {override}: ")


def test_suggestions():
    assert suggest("epoch", ["epochs", "loss"]) == "did you mean 'epochs'? Known: epochs, loss"
    assert suggest("zzz", ["epochs"]) == "Known: epochs"
    assert look_up({"a": 1}, "a", where="x") == 1
