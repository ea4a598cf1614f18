"""docs/systems/checklist.md names nothing that is not there: tests, recipes, keys, commands."""

import re
from pathlib import Path

import pytest

from masksmith import cli, pipeline
from masksmith.recipes.sources import list_recipes

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "systems" / "checklist.md").read_text()


def rows(text):
    """Return the cells of each row: (ids, what, where, test)."""
    lines = [line for line in text.splitlines() if re.match(r"\| (?!row|---)", line)]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def missing(text):
    """Return what a text names that is not there."""
    known = (ROOT / "docs" / "vocabulary.md").read_text() + "\n".join(one.text for one in list_recipes())
    recipes, options = {one.name for one in list_recipes()}, Path(cli.__file__).read_text()
    wrong = []
    for _, _, where, test in rows(text):
        for word in re.findall(r"`([^`]+)`", test):
            path, _, name = word.partition("::")
            file = ROOT / "tests" / path
            if not file.is_file() or not re.search(rf"^def {name}\(", file.read_text(), re.M):
                wrong.append(word)
        for word in re.findall(r"`([^`]+)`", where):
            if word.startswith("masksmith."):
                there = (ROOT / "src" / f"{word.replace('.', '/')}.py").is_file()
            elif word.startswith("masksmith "):
                there = hasattr(pipeline, word.removeprefix("masksmith "))
            elif word.startswith("--"):
                there = re.search(rf"\b{word[2:].replace('-', '_')}\b", options) is not None
            elif "-" in word:
                there = word in recipes
            else:
                key = re.split(r"[:(=\[]", word.replace("[]", ""))[0].rpartition(".")[2]
                there = re.search(rf"\b{key}\b", known) is not None
            wrong += [] if there else [word]
    return wrong


def test_what_it_names_is_there():
    assert missing(TEXT) == []


def test_each_row_has_a_place_and_a_test_or_says_not_yet():
    found = rows(TEXT)
    assert len(found) > 120
    for ids, _, where, test in found:
        assert re.match(r"not yet: issue \d+", test) or ("::test_" in test and where), ids
    listed = {one for ids, *_ in found for one in ids.split(", ")}
    for section, count in {"aug": 16, "loss": 28, "train": 25}.items():
        outside = {"003.aug.10", "003.train.24"} | {
            f"003.loss.{n}" for n in (3, 7, 8, 10, 11, 12, 13, 23, 24, 27, 28)
        }
        assert {f"003.{section}.{n}" for n in range(1, count + 1)} - listed - outside == set(), section


@pytest.mark.parametrize(
    "row",
    [
        "| a | b | `geometry.hflop` | `augment/test_geometry.py::test_every_field_is_tested` |",
        "| a | b | recipe `tgs-model9` | `augment/test_geometry.py::test_every_field_is_tested` |",
        "| a | b | `masksmith explode` | `augment/test_geometry.py::test_every_field_is_tested` |",
        "| a | b | `geometry.hflip` | `augment/test_geometry.py::test_no_field_is_tested` |",
    ],
)
def test_what_is_not_there_is_found(row):
    assert len(missing(row)) == 1
