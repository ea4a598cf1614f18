"""The project folder: its files, its runs, and the members whose predictions are averaged."""
