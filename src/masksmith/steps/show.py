"""Recipes and their vocabulary as a person reads them."""

from masksmith.recipes.describe import describe_ensemble, describe_recipe
from masksmith.recipes.vocabulary import read_vocabulary

__all__ = ["describe_ensemble", "describe_recipe", "read_vocabulary"]
