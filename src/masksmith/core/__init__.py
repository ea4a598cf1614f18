"""Errors, files, configuration, randomness, progress and interrupts, for every package. Imports no torch."""
