"""Bundled recipes checked against what they were."""

from masksmith.recipes.ensemble import is_ensemble
from masksmith.recipes.recipe import load_recipe
from masksmith.recipes.sources import list_recipes
from masksmith.recipes.verify import Verdicts, golden, refuse_failed, verify, verify_ensemble
from masksmith.steps.work import restored_threads


def verify_recipes(name: str | None, *, scale: str) -> Verdicts:
    """Verify a recipe or ensemble by name, or all.

    Raises:
        InputError: An unknown recipe or scale, or a recipe is not what it was.
    """
    names = [listing.name for listing in list_recipes()] if name is None else [name]
    known = golden()
    with restored_threads():
        checked = [
            verify_ensemble(one)
            if is_ensemble(one)
            else verify(load_recipe(one), scale=scale, known=known.get(one))
            for one in names
        ]
    verdicts = Verdicts(checked)
    refuse_failed(verdicts)
    return verdicts
