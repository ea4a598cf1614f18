import runpy
from pathlib import Path

import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.losses.build import LOSSES
from masksmith.metrics import METRICS
from masksmith.models.segmentation import MODELS
from masksmith.preprocess import SizeConfig
from masksmith.recipes.vocabulary import KINDS, Option, field_texts

ROOT = Path(__file__).parents[2]


def test_every_table_is_listed_with_descriptions():
    options = ms.vocabulary().options
    assert set(options) == set(KINDS)
    for kind in ("models", "losses", "metrics", "schedules", "augmentation", "model options", "sampling"):
        assert options[kind], kind
        assert [option.name for option in options[kind] if not option.description] == [], kind
    for kind, table in (("losses", LOSSES), ("metrics", METRICS), ("models", MODELS)):
        assert [option.name for option in options[kind]] == list(table), kind


def test_options_show_their_defaults_and_the_docstrings_of_their_fields():
    losses = {option.name: option for option in ms.vocabulary("losses").options["losses"]}
    assert losses["focal"].shown == "focal(gamma=2.0, alpha=None)"
    fields = {option.name: option for option in ms.vocabulary("augmentation").options["augmentation"]}
    assert fields["scale_range"].shown == "scale_range: [1.0, 1.0]"
    assert fields["elastic"].shown.startswith("elastic: {probability: 0.0, ")
    assert str(Option("a", "b")) == f"{'a':34s} b"
    assert set(field_texts(SizeConfig)) == {"resize_hw", "pad_hw", "border", "chain"}
    assert field_texts(SizeConfig)["border"]


def test_an_unknown_kind():
    with pytest.raises(InputError, match="vocabulary: 'loses' is unknown; did you mean 'losses'"):
        ms.vocabulary("loses")


def test_the_page_is_current():
    written = (ROOT / "docs" / "vocabulary.md").read_text()
    made = runpy.run_path(str(ROOT / "tools" / "vocabulary.py"))["page"]()
    assert written == made, "run `python tools/vocabulary.py`"
