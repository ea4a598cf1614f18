"""Folds: which images a model is validated on."""
