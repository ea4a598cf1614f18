import runpy
from pathlib import Path

import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.recipes.vocabulary import KINDS, Word, field_texts

ROOT = Path(__file__).parent.parent


def test_every_table_is_listed_with_what_it_does():
    words = ms.vocabulary().words
    assert set(words) == set(KINDS)
    for kind in ("models", "losses", "metrics", "schedules", "augmentation", "model options", "sampling"):
        assert words[kind], kind
        undescribed = [word.name for word in words[kind] if not word.describes]
        assert not undescribed, (kind, undescribed)


def test_a_word_that_is_listed_can_be_used():
    from masksmith.losses.build import LOSSES
    from masksmith.metrics import METRICS
    from masksmith.models.segmentation import MODELS

    words = ms.vocabulary().words
    for kind, table in (("losses", LOSSES), ("metrics", METRICS), ("models", MODELS)):
        assert [word.name for word in words[kind]] == list(table), kind


def test_parameters_stand_with_their_defaults():
    words = {word.name: word for word in ms.vocabulary("losses").words["losses"]}
    assert words["focal"].shown == "focal(gamma=2.0, alpha=None)"
    fields = {word.name: word for word in ms.vocabulary("augmentation").words["augmentation"]}
    assert fields["scale_range"].shown == "scale_range: [1.0, 1.0]"
    assert fields["elastic"].shown.startswith("elastic: {probability: 0.0, ")
    assert str(Word("a", "b")) == f"{'a':34s} b"


def test_texts_of_fields_are_those_of_the_source():
    from masksmith.preprocess import SizeConfig

    assert set(field_texts(SizeConfig)) == {"resize_hw", "pad_hw", "border"}
    assert field_texts(SizeConfig)["border"].startswith("What the padding shows")


def test_an_unknown_kind():
    with pytest.raises(InputError, match="vocabulary: 'loses' is unknown; did you mean 'losses'"):
        ms.vocabulary("loses")


def test_the_page_is_current():
    written = (ROOT / "docs" / "vocabulary.md").read_text()
    made = runpy.run_path(str(ROOT / "tools" / "vocabulary.py"))["page"]()
    assert written == made, "run `python tools/vocabulary.py`"
