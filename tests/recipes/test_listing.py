import re

from masksmith.recipes.listing import FAMILIES, OWN, family, listing_table
from masksmith.recipes.sources import Listing, list_recipes

HEADER = {
    "published": "0.741254 on the public leaderboard " * 3,
    "ours": "not measured yet",
    "cost": "an hour " * 9,
}
SHELF = [
    Listing("auto", HEADER, "name: auto\n"),
    Listing("siim-two-resolutions", HEADER, "name: siim-two-resolutions\n", "ensemble"),
    Listing("tgs-model1", HEADER | {"cost": "an hour, members: none"}, "name: tgs-model1\n"),
]


def test_every_recipe_is_under_its_competition_and_no_word_is_lost():
    assert family("tgs-model1") == FAMILIES["tgs"]
    assert family("tgsmodel") == family("water-unet") == OWN
    for width in (40, 100, 160):
        text = listing_table(SHELF, width=width)
        lines = text.splitlines()
        assert max(map(len, lines)) <= max(width, 100)
        heads = [line for line in lines if line in (OWN, *FAMILIES.values())]
        assert heads == [OWN, FAMILIES["tgs"], FAMILIES["siim"]]
        starts = [[line.startswith(listing.name + " ") for line in lines] for listing in SHELF]
        assert [sum(found) for found in starts] == [1, 1, 1]
        assert lines.index(FAMILIES["tgs"]) < starts[2].index(True)
        assert re.search(r"^siim-two-resolutions +ensemble ", text, re.MULTILINE)
        assert text.count("leaderboard") == 9
        assert text.count("an hour") + text.count("an\n") >= 9


def test_the_bundled_ones():
    listings = list_recipes()
    text = listing_table(listings, width=120)
    for listing in listings:
        assert re.search(rf"^{listing.name} +{listing.kind}\b", text, re.MULTILINE)
    assert {listing.kind for listing in listings} == {"recipe", "ensemble"}
