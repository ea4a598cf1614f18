"""Write recipes/golden.json: weights, size trace and four losses of the bundled recipes, as they are now.

    python tools/golden.py [RECIPE ...]

Without a name all recipes are written; with names, only their entries change. A change of this file is a change of
numbers: explain it in the change log.
"""

import json
import sys
from pathlib import Path

import masksmith  # noqa: F401  (its guard, before torch)
from masksmith.recipes.recipe import load_recipe
from masksmith.recipes.sources import list_recipes
from masksmith.recipes.verify import drawn_images, facts_of, golden, scaled

GOLDEN = Path(__file__).parent.parent / "src" / "masksmith" / "recipes" / "golden.json"


def main(asked: list[str]) -> None:
    """Write the file."""
    names, known = [listing.name for listing in list_recipes("recipe")], golden() if asked else {}
    for name in asked or names:
        recipe = load_recipe(name)
        with drawn_images(scaled(recipe, "small")) as data:
            known[name] = facts_of(recipe, data, scale="small").to_json()
    GOLDEN.write_text(json.dumps({name: known[name] for name in names}, indent=1) + "\n")
    print(f"{GOLDEN.name}: {len(names)} recipes")


if __name__ == "__main__":
    main(sys.argv[1:])
