"""docs/systems: every recipe has a place there, every link and figure exists, and the words of the tips are words."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from masksmith.recipes.sources import list_recipes

ROOT = Path(__file__).parents[1]
SYSTEMS = ROOT / "docs" / "systems"
PAGES = sorted(SYSTEMS.glob("*.md"))
BUNDLED = {listing.name for listing in list_recipes()}
TIPS = {
    "External data": 5, "Exploration": 2, "Preprocessing": 18, "Augmentation": 17, "Modelling": 49, "Losses": 28,
    "Training": 25, "Evaluation": 7, "Ensembling": 9, "Post-processing": 6,
}  # fmt: skip
FILES = {"metrics.jsonl", "environment.txt", "report.html", "recipe.yaml"}


@pytest.fixture
def tools(monkeypatch):
    """The script's modules, imported as it imports them."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import system_figures

    yield system_figures
    for name in ("system_figures", "system_drawings", "drawing"):
        sys.modules.pop(name, None)


def test_every_bundled_recipe_is_named_on_a_page():
    text = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in sorted(BUNDLED) if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_recipe_of_a_page_is_bundled(page):
    assert sorted(recipes_named(page.read_text()) - BUNDLED) == []


def recipes_named(text):
    """What a page calls a recipe: commands, words in code with the prefix of one, and first cells that are code."""
    prefixes = "|".join(sorted({name.partition("-")[0] for name in BUNDLED if "-" in name}))
    patterns = r"--recipe ([a-z0-9_-]+)", rf"`((?:{prefixes})-[^`]*)`", r"^\| `([^`]*)` \|"
    return {name for pattern in patterns for name in re.findall(pattern, text, re.M)}


@pytest.mark.parametrize(
    "text",
    [
        "    masksmith compete DATA --out PROJECT --recipe tgs-modell",
        "as `siim-unet-b5` does",
        "| `unett` | 3 |",
        "| winner | `cloud-unets` |",
    ],
)
def test_a_misspelt_recipe_of_a_page_is_found(text):
    assert len(recipes_named(text) - BUNDLED) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_figures_exist(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    local = [link for link in links if not link.startswith("https://")]
    assert [link for link in local if not (page.parent / link.partition("#")[0]).is_file()] == []
    assert page.name == "README.md" or page.name in (SYSTEMS / "README.md").read_text()


def test_every_figure_is_shown_small_and_whole():
    text = "\n".join(page.read_text() for page in PAGES)
    figures = sorted((SYSTEMS / "figures").iterdir())
    assert len(figures) > 15
    for path in figures:
        assert f"figures/{path.name}" in text, path
        assert path.stat().st_size < 60_000, path
        assert ElementTree.parse(path).getroot().get("width") == "760"


def tips():
    """Return section -> (numbers, words in the last column) of the tables of kaggle-39.md."""
    found = {}
    for section in (SYSTEMS / "kaggle-39.md").read_text().split("\n### ")[1:]:
        title, _, body = section.partition("\n")
        rows = [row.strip("|").split("|") for row in body.splitlines() if re.match(r"\| \d", row)]
        found[title] = ([number for row in rows for number in numbers(row[0])], [row[-1] for row in rows])
    return found


def numbers(cell):
    if "to" in cell:
        first, last = map(int, cell.split("to"))
        return range(first, last + 1)
    return map(int, cell.split(","))


@pytest.mark.parametrize(("section", "count"), TIPS.items())
def test_every_tip_of_the_blog_has_a_row(section, count):
    assert sorted(tips()[section][0]) == list(range(1, count + 1))


def test_the_words_of_the_tips_are_in_the_vocabulary():
    known = (ROOT / "docs" / "vocabulary.md").read_text() + next(
        listing.text for listing in list_recipes() if listing.name == "auto"
    )
    words = {
        word for _, cells in tips().values() for cell in cells for word in re.findall(r"`([^`]+)`", cell)
    }
    recipes = {word for word in words if "-" in word}
    keys = {
        re.split(r"[:(=]", word)[0].rpartition(".")[2].removesuffix("[]") for word in words - recipes - FILES
    }
    keys -= {"members", "masksmith check", "masksmith lr"}
    assert len(keys) > 60
    assert sorted(key for key in keys if not re.search(rf"\b{key}\b", known)) == []


def test_the_script_draws_any_project(tools, trained, tmp_path):
    tools.main(["--project", str(trained), "--pictures", str(trained), "--out", str(tmp_path)])
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (SYSTEMS / "figures").iterdir()}
    for path in tmp_path.iterdir():
        ElementTree.parse(path)
    assert "of 40 masks are empty" in (tmp_path / "coverage.svg").read_text()


def test_a_project_without_numbers_beside_its_images_has_no_column(tools, trained, tmp_path):
    import dataclasses

    facts = dataclasses.replace(tools.facts_of(trained), columns={})
    assert tools.column(facts) is None
    assert tools.draw({"column": None}, tmp_path) == []


def test_a_figure_that_is_too_large_is_refused(tools, tmp_path, monkeypatch):
    monkeypatch.setattr(tools, "LARGEST", 100)
    with pytest.raises(ValueError, match=r"net-depth-unet\.svg: \d+ bytes; expected at most 100"):
        tools.main(["--out", str(tmp_path / "figures")])


def test_names_are_escaped(tools):
    drawing = tools.Drawing(100, 100, "<a> & b")
    drawing.text(1, 1, "<script>")
    assert all("<script>" not in part for part in drawing.parts)
    assert "&lt;a&gt; &amp; b" in drawing.parts[0]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1.2, 3), (0, 0.011), (50, 960), (0, 1272.3), (0, 1e-5)])
def test_ticks_are_round_and_inside(tools, low, high):
    from drawing import nice_ticks

    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert all(low <= tick <= high for tick in ticks)
