"""Recipes and ensembles: every value of a training as YAML, read without torch."""
