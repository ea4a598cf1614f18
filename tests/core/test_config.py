import pytest

from masksmith.core.config import apply_overrides, look_up, read_yaml, suggest, write_yaml
from masksmith.core.errors import InputError

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
        ("? [a]\n: 1", "x.yaml: line 1: not valid YAML: a key is no word or number"),
        (
            "a: 2020-01-01",
            r"x.yaml: a value cannot be read \(datetime.date.* is read as date\); put it in quotes",
        ),
        ("a: 2020-99-99", "x.yaml: a value cannot be read .month must be in"),
        ("a: !!set {b}", "x.yaml: a value cannot be read .* is read as set"),
        (f"a: {'1' * 5000}", "x.yaml: a value cannot be read .Exceeds the limit"),
        ("[" * 5000, "x.yaml: nested too deeply to be a recipe"),
        ("a: &a [*a]", "x.yaml: line 1: not valid YAML: found unconstructable recursive node"),
        ("&a [*a]", "x.yaml: nested too deeply to be a recipe"),
        ("a: " + "x" * 300_000, "x.yaml: 300,003 characters; expected a recipe, at most 262,144"),
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


def laughs(levels, width):
    """Lists of aliases of lists of aliases: width to the power of levels values."""
    lines = ["l0: &l0 ha"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * width)}]" for i in range(1, levels + 1)]
    return "\n".join(lines)


def test_a_billion_laughs():
    with pytest.raises(
        InputError, match=r"x\.yaml: it unfolds to more than 100,000 values; write the values out"
    ):
        read_yaml(laughs(9, 10), where="x.yaml")
    mapping = laughs(9, 10).replace("[", "{k: [").replace("]", "]}")
    with pytest.raises(InputError, match="it unfolds to more than 100,000 values"):
        read_yaml(mapping, where="x.yaml")
    with pytest.raises(InputError, match=r"(?s)--set name=.*it unfolds"):
        apply_overrides(RECIPE, [f"name={laughs(9, 10)}"])
    with pytest.raises(InputError, match="a key is no word or number"):  # whose text would be endless
        read_yaml(laughs(9, 10) + "\n? *l9\n: 1", where="x.yaml")


def test_a_few_aliases_are_taken():
    assert read_yaml("a: &a [1, 2]\nb: *a", where="x") == {"a": [1, 2], "b": [1, 2]}


def test_an_override_of_the_last_items_of_a_list():
    stages = {"stages": [1, 2, 3, 4]}
    assert apply_overrides(stages, ["stages.2:=[]"]) == {"stages": [1, 2]}
    assert apply_overrides(stages, ["stages.1:=[7, 8, 9, 10]"]) == {"stages": [1, 7, 8, 9, 10]}
    assert apply_overrides(stages, ["stages.4:=[5]"]) == {"stages": [1, 2, 3, 4, 5]}
    assert apply_overrides(stages, ["stages.0:=[]"]) == {"stages": []}
    assert stages == {"stages": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.5:=[]", r"--set stages\.5:=\[\]: '5' is no place in a list of 4; expected 0 to 4"),
        ("stages.-1:=[]", "'-1' is no place"),
        ("stages.2:=7", "7 is a whole number; items of a list are replaced by a list"),
        ("stages.2:.x=7", "'2:' is not an item of a list of 4"),
    ],
)
def test_last_items_that_are_none(override, said):
    with pytest.raises(InputError, match=said):
        apply_overrides({"stages": [1, 2, 3, 4]}, [override])
