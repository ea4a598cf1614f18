"""Write recipes/golden.json: weights, size trace and four losses of every bundled recipe, as they are now.

    python tools/golden.py

A change of this file is a change of numbers: say why in the change log.
"""

import json
import tempfile
from pathlib import Path

import masksmith  # noqa: F401  (its guard, before torch)
from masksmith.recipes.recipe import list_recipes, load_recipe
from masksmith.recipes.verify import eight_images, facts_of, scaled

GOLDEN = Path(__file__).parent.parent / "src" / "masksmith" / "recipes" / "golden.json"


def main() -> None:
    """Write the file."""
    written = {}
    for listing in list_recipes("recipe"):
        recipe = load_recipe(listing.name)
        small = scaled(recipe, "small")
        with tempfile.TemporaryDirectory() as folder:
            channels = small.input.channels(1)
            data = eight_images(
                Path(folder), scalars=len(small.model.scalars), size=small.size, channels=channels
            )
            written[listing.name] = facts_of(recipe, data, scale="small").to_json()
    GOLDEN.write_text(json.dumps(written, indent=1) + "\n")
    print(f"{GOLDEN.name}: {len(written)} recipes")


if __name__ == "__main__":
    main()
