import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksmith.core.config import validate
from masksmith.core.errors import InputError
from masksmith.core.randomness import stream
from masksmith.training import SamplerConfig
from masksmith.training.samplers import (
    SAMPLERS,
    Draw,
    ImageFacts,
    draw_order,
    fresh_before,
    image_facts,
    is_repeat,
    refuse_impossible,
    seen_before,
)
from tests.training.tiny import make_data

CLASSES = np.array([0] * 60 + [1] * 30 + [5] * 10)
FACTS = ImageFacts(CLASSES / 10 + np.arange(100) / 10_000 * (CLASSES > 0), CLASSES)
UNSEEN = np.full(100, np.inf)
CONFIGS = {
    "class_aware": SamplerConfig(name="class_aware"),
    "curriculum": SamplerConfig(name="curriculum"),
    "non_empty": SamplerConfig(name="non_empty"),
    "plain": SamplerConfig(),
    "weighted": SamplerConfig(name="weighted", class_weights=[1.0, 2.0] + [0.0] * 9),
}


def order(made, *, at=0.0, losses=UNSEEN, facts=FACTS, counter=0):
    return draw_order(made, Draw(facts, losses, at, stream(7, counter)))


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_epoch_has_as_many_images_as_there_are_and_is_drawn_by_counter(name):
    first, again, other = (order(CONFIGS[name], counter=counter) for counter in (0, 0, 1))
    assert len(first) == 100
    assert set(first.tolist()) <= set(range(100))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_plain_is_every_image_once():
    assert sorted(order(CONFIGS["plain"]).tolist()) == list(range(100))


def test_class_aware_gives_every_class_its_turn():
    drawn = np.concatenate([order(CONFIGS["class_aware"], counter=counter) for counter in range(60)])
    shares = np.bincount(CLASSES[drawn], minlength=11)[[0, 1, 5]] / len(drawn)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.02)  # 0.02: three standard deviations of 6000 draws
    within = np.bincount(drawn, minlength=100)[90:]
    assert within.min() > 0.85 * within.mean()


def test_weighted_follows_the_weights():
    drawn = np.concatenate([order(CONFIGS["weighted"], counter=counter) for counter in range(60)])
    shares = np.bincount(CLASSES[drawn], minlength=11) / len(drawn)
    assert shares[:2] == pytest.approx([0.5, 0.5], abs=0.02)  # 60 images of weight 1, 30 of weight 2
    assert shares[2:].sum() == 0


@pytest.mark.parametrize(("at", "share"), [(0.0, 0.8), (0.5, 0.6), (1.0, 0.4)])
def test_the_share_of_non_empty_images_slides(at, share):
    drawn = order(CONFIGS["non_empty"], at=at)
    assert (CLASSES[drawn] > 0).mean() == pytest.approx(share)
    counts = np.bincount(drawn, minlength=100)
    for pool in (counts[:60], counts[60:]):
        assert pool.max() - pool.min() <= 1  # in turn: none twice before all were once


def test_a_curriculum_by_coverage_begins_with_much_foreground_and_ends_with_all():
    made = SamplerConfig(name="curriculum", start_frac=0.1)
    assert set(order(made).tolist()) == set(range(90, 100))
    assert set(CLASSES[order(made, at=1 / 3)]) == {1, 5}  # 40 of 100
    assert sorted(order(made, at=1.0).tolist()) == list(range(100))


def test_a_curriculum_by_loss():
    made = SamplerConfig(name="curriculum", by="loss", start_frac=0.2)
    assert sorted(order(made).tolist()) == list(range(100))  # nothing is known yet
    losses = np.arange(100.0)[::-1].copy()
    assert set(order(made, losses=losses).tolist()) == set(range(80, 100))
    losses[80:] = np.inf  # never seen: the hardest
    assert set(order(made, losses=losses).tolist()) == set(range(60, 80))


def test_coverage_is_read_from_the_masks(tmp_path):
    data = make_data(tmp_path, count=4, empty=1)
    facts = image_facts(data.masks, data.ids)
    expected = [(mask == 1).mean() for mask in (data.masks[name] for name in data.ids)]
    assert facts.coverage == pytest.approx(expected)
    assert facts.classes.tolist() == [0, *(int(np.ceil(10 * share)) for share in expected[1:])]


def test_repeats_stand_after_each_group():
    assert [is_repeat(step, 3) for step in range(9)] == [False, False, False, True] * 2 + [False]
    assert [fresh_before(step, 3) for step in range(9)] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert [fresh_before(step, None) for step in range(3)] == [0, 1, 2]
    assert not is_repeat(3, None)


@pytest.mark.parametrize(
    ("classes", "made", "message"),
    [
        (
            [1, 2],
            CONFIGS["non_empty"],
            r"sampler.non_empty_frac: \[0.8, 0.4\], but of 2 .* 2 have .* 0 are empty",
        ),
        ([0, 0], CONFIGS["non_empty"], r"0 have foreground and 2 are empty"),
        ([5, 5], CONFIGS["weighted"], r"sampler.class_weights: .* expected weights for \[5\]"),
    ],
)
def test_what_is_not_there_cannot_be_drawn(classes, made, message):
    facts = ImageFacts(np.array(classes) / 10, np.array(classes))
    with pytest.raises(InputError, match=message):
        refuse_impossible(made, facts, where="sampler")


def test_a_share_of_nothing_needs_nothing():
    facts = ImageFacts(np.zeros(4), np.zeros(4, np.int64))
    none = SamplerConfig(name="non_empty", non_empty_frac=(0.0, 0.0))
    refuse_impossible(none, facts, where="sampler")
    assert sorted(order(none, facts=facts).tolist()) == [0, 1, 2, 3]


def test_what_is_there_is_not_refused():
    for made in CONFIGS.values():
        refuse_impossible(made, FACTS, where="sampler")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "plain", "start_frac": 0.5}, r"start_frac: 0.5, but the sampler 'plain' has no use for it"),
        ({"name": "weighted", "class_weights": [1.0]}, r"class_weights: \[1.0\]; expected 11 numbers"),
        ({"name": "weighted"}, r"class_weights: None; expected 11 numbers"),
    ],
)
def test_samplers_refuse_fields_without_a_use(fields, message):
    with pytest.raises(InputError, match=message):
        validate(SamplerConfig, fields, where="sampler")


@given(st.lists(st.integers(0, 6), max_size=30))
def test_how_often_an_image_came_before(order):
    seen = seen_before(np.array(order, np.int64))
    assert seen.tolist() == [order[:at].count(image) for at, image in enumerate(order)]
