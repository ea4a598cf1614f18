"""docs/systems: every recipe is named there, every link and figure exists, and the options of the tips exist."""

import re
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from masksmith import pipeline
from masksmith.recipes.sources import list_recipes

ROOT = Path(__file__).parents[2]
SYSTEMS = ROOT / "docs" / "systems"
PAGES = {path: path.read_text() for path in sorted(SYSTEMS.glob("*.md"))}
TEXT = "\n".join(PAGES.values())
BUNDLED = {listing.name: listing.text for listing in list_recipes()}
TIPS = {
    "External data": 5, "Exploration": 2, "Preprocessing": 18, "Augmentation": 17, "Modelling": 49, "Losses": 28,
    "Training": 25, "Evaluation": 7, "Ensembling": 9, "Post-processing": 6,
}  # fmt: skip
FILES = {"duplicates.csv", "metrics.jsonl", "environment.txt", "report.html", "recipe.yaml"}


def recipes_named(text):
    """What a page calls a recipe: commands, code that begins like a recipe's name, and first cells that are code."""
    prefixes = "|".join(sorted({name.partition("-")[0] for name in BUNDLED if "-" in name}))
    patterns = r"--recipe ([a-z0-9_-]+)", rf"`((?:{prefixes})-[^`]*)`", r"^\| `([^`]*)` \|"
    return {name for pattern in patterns for name in re.findall(pattern, text, re.M)}


def test_every_bundled_recipe_is_named_and_every_named_one_is_bundled():
    assert [name for name in BUNDLED if f"`{name}`" not in TEXT] == []
    assert recipes_named(TEXT) - set(BUNDLED) == set()
    for text in (
        "    masksmith compete DATA --out PROJECT --recipe tgs-modell",
        "as `siim-unet-b5` does",
        "| `unett` | 3 |",
        "| winner | `cloud-unets` |",
    ):
        assert len(recipes_named(text) - set(BUNDLED)) == 1, text


def test_links_and_figures_exist():
    for path, text in PAGES.items():
        links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
        assert [link for link in links if not (SYSTEMS / link.partition("#")[0]).is_file()] == [], path
        assert path.name == "README.md" or path.name in PAGES[SYSTEMS / "README.md"]
    figures = sorted((SYSTEMS / "figures").iterdir())
    assert len(figures) > 15
    for path in figures:
        assert f"figures/{path.name}" in TEXT, path
        assert path.stat().st_size < 60_000, path
        assert ElementTree.parse(path).getroot().get("width") == "760"


def tips():
    """Return section -> (numbers, cells of the last column) of the tables of kaggle-39.md."""
    found = {}
    for section in PAGES[SYSTEMS / "kaggle-39.md"].split("\n### ")[1:]:
        title, _, body = section.partition("\n")
        rows = [row.strip("|").split("|") for row in body.splitlines() if re.match(r"\| \d", row)]
        found[title] = ([number for row in rows for number in numbers(row[0])], [row[-1] for row in rows])
    return found


def numbers(cell):
    if "to" in cell:
        first, last = map(int, cell.split("to"))
        return range(first, last + 1)
    return map(int, cell.split(","))


def test_every_tip_of_the_blog_has_a_row_and_its_options_exist():
    found = tips()
    assert {title: sorted(found[title][0]) for title in TIPS} == {
        title: list(range(1, count + 1)) for title, count in TIPS.items()
    }
    known = (ROOT / "docs" / "vocabulary.md").read_text() + BUNDLED["auto"]
    words = {word for _, cells in found.values() for cell in cells for word in re.findall(r"`([^`]+)`", cell)}
    options = {word for word in words if "-" not in word} - FILES
    keys = {re.split(r"[:(=]", word)[0].rpartition(".")[2].removesuffix("[]") for word in options}
    verbs = {key for key in keys if key.startswith("masksmith ")}
    assert all(hasattr(pipeline, verb.removeprefix("masksmith ")) for verb in verbs)
    keys -= verbs | {"members"}
    assert len(keys) > 60
    assert sorted(key for key in keys if not re.search(rf"\b{key}\b", known)) == []


@pytest.fixture
def tools(monkeypatch):
    """The script's modules, imported as it imports them."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import system_figures

    yield system_figures
    for name in ("system_figures", "system_drawings", "run_figures", "drawing"):
        sys.modules.pop(name, None)


def test_the_script_draws_any_project(tools, trained, tmp_path, monkeypatch):
    import dataclasses

    out = tmp_path / "figures"
    tools.main(["--project", str(trained), "--pictures", str(trained), "--out", str(out)])
    kept = {path.name for path in (SYSTEMS / "figures").iterdir()}
    of_runs = {name for name in kept if re.match(r"(curves|threshold)-tgs-", name)}
    assert {path.name for path in out.iterdir()} == kept - of_runs
    tools.main(["--run", str(trained), "--out", str(out)])
    assert {"curves-smoke.svg", "threshold-smoke.svg"} <= {path.name for path in out.iterdir()}
    words = (out / "curves-smoke.svg").read_text()
    assert all(part in words for part in ("smoke: 6 of 6 epochs, fold 0", ">loss<", ">tgs_map<", "held out"))
    for path in out.iterdir():
        ElementTree.parse(path)
    assert "of 40 masks are empty" in (out / "coverage.svg").read_text()
    facts = dataclasses.replace(tools.facts_of(trained), columns={})  # no numbers beside the images
    assert tools.column(facts) is None
    assert tools.draw({"column": None}, tmp_path) == []
    begun = shutil.copytree(trained, tmp_path / "begun")
    next(begun.glob("runs/*/metrics*.jsonl")).write_text("")
    with pytest.raises(ValueError, match="no epoch is trained yet"):
        tools.main(["--run", str(begun), "--out", str(out)])
    monkeypatch.setattr(tools, "LARGEST", 100)
    with pytest.raises(ValueError, match=r"net-depth-unet\.svg: \d+ bytes; expected at most 100"):
        tools.main(["--out", str(out)])


def test_drawings_escape_names_and_have_round_ticks(tools):
    from masksmith.reporting.drawing import nice_ticks

    drawing = tools.Drawing(100, 100, "<a> & b")
    drawing.text(1, 1, "<script>")
    assert all("<script>" not in part for part in drawing.parts)
    assert "&lt;a&gt; &amp; b" in drawing.parts[0]
    for low, high in ((0, 1), (-1.2, 3), (0, 0.011), (50, 960), (0, 1272.3), (0, 1e-5)):
        ticks = nice_ticks(low, high)
        assert 2 <= len(ticks) <= 8
        assert all(low <= tick <= high for tick in ticks)
