"""The project folder: its files, its runs, and the ensemble members whose predictions are averaged."""
