"""The bundled recipes as a table for the terminal, grouped by competition."""

import textwrap
from collections.abc import Sequence
from itertools import zip_longest

from masksmith.recipes.sources import Listing

FAMILIES = {
    "tgs": "TGS Salt Identification, Kaggle 2018",
    "siim": "SIIM-ACR Pneumothorax Segmentation, Kaggle 2019",
    "cloud": "On Cloud N, DrivenData 2021",
    "dsb2018": "Data Science Bowl 2018, Kaggle",
    "carvana": "Carvana Image Masking, Kaggle 2017",
}
"""First word of a recipe's name -> the competition it comes from."""
OWN = "our own"
_SHOWN = ("published", "ours", "cost")
_GAP = 2
_LEAST_WIDTH = 100  # below, the columns are too narrow to read


def family(name: str) -> str:
    """Return the competition that a recipe comes from, or that it is our own."""
    return FAMILIES.get(name.partition("-")[0], OWN)


def listing_table(listings: Sequence[Listing], *, width: int) -> str:
    """Return the recipes by competition, our own first: name, kind, published score, our score, cost.

    Args:
        listings: What to show.
        width: Of the terminal in characters; at least 100 are used, so that the columns stay readable.
    """
    names = max((len(listing.name) for listing in listings), default=0)
    room = max(width, _LEAST_WIDTH) - names - len("ensemble") - 4 * _GAP
    widths = [names, len("ensemble"), room * 2 // 5, room * 3 // 10, room * 3 // 10]
    parts = []
    for part in (OWN, *FAMILIES.values()):
        inside = [listing for listing in listings if family(listing.name) == part]
        if inside:
            rows = [
                [listing.name, listing.kind, *(listing.header.get(key, "") for key in _SHOWN)]
                for listing in inside
            ]
            parts.append(f"{part}\n{_lines(rows, widths)}")
    return "\n\n".join([_lines([["name", "kind", *_SHOWN]], widths), *parts])


def _lines(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    """Return rows of cells as text, each cell wrapped to the width of its column."""
    return "\n".join(line for row in rows for line in _row(row, widths))


def _row(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    wrapped = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, widths, strict=True)]
    return [
        (" " * _GAP).join(piece.ljust(width) for piece, width in zip(line, widths, strict=True)).rstrip()
        for line in zip_longest(*wrapped, fillvalue="")
    ]
