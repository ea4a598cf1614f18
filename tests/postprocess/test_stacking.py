"""Trees on predictions: what they see, what they learn, and that parts of an image are as the whole."""

import numpy as np
import pytest

from masksmith.core.errors import InputError
from masksmith.postprocess import stacking
from masksmith.postprocess.stacking import (
    BothTrees,
    ImageTrees,
    PixelTrees,
    RegionTrees,
    Trees,
    View,
    pixel_features,
)
from masksmith.prediction.store import MAX_CODE, to_codes


def views(count, *, planes=1, side=24, seed=0):
    """Images whose first band says where the foreground is, and predictions that know little of it."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        truth = np.zeros((side, side, planes), np.int8)
        top, left = rng.integers(0, side - 8, 2)
        truth[top : top + 8, left : left + 8] = 1
        image = np.stack(
            [truth[..., 0] * 100 + rng.integers(0, 20, (side, side)), rng.integers(0, 9, (side, side))], -1
        )
        codes = to_codes(np.clip(0.5 + 0.1 * truth + rng.normal(0, 0.2, truth.shape), 0, 1))
        yield View(image.astype(np.uint8), [], codes), truth


def trained(stacker, made):
    rng = np.random.default_rng(0)
    rows = [stacker.gather(view, truth, rng) for view, truth in made]
    features = np.concatenate([one for one, _ in rows if len(one)])
    return stacker.fit(features, np.concatenate([own for one, own in rows if len(one)]), seed=0)


def test_pixels_take_from_bands_what_predictions_lack():
    stacker, made = PixelTrees(150, exclusive=False, outputs=1), list(views(8))
    made[0][1][0] = -1  # not judged, not drawn
    model = trained(stacker, made)
    for view, truth in views(2, seed=1):
        found = stacker.apply(model, view) > MAX_CODE // 2
        assert (found == truth).mean() > 0.98 > ((view.present > MAX_CODE // 2) == truth).mean()


def test_classes_stay_a_distribution_and_planes_beyond_stay():
    stacker, made = PixelTrees(100, exclusive=True, outputs=3), []
    for view, truth in views(4):
        classes = np.concatenate([1 - truth, truth, 0 * truth], axis=-1)  # the third class never comes
        codes = np.repeat(view.present // 3, 3, axis=-1)
        made.append((View(view.image, [codes, codes], codes), classes))
    found = stacker.apply(trained(stacker, made), made[0][0])
    assert np.abs(found.sum(axis=-1, dtype=int) - MAX_CODE).max() <= 2
    assert not found[..., 2].any()
    assert (found.argmax(axis=-1) == made[0][1].argmax(axis=-1)).mean() > 0.98
    objects = PixelTrees(50, exclusive=False, outputs=1)
    three = [(View(view.image, [], np.repeat(view.present, 3, axis=-1)), truth) for view, truth in views(3)]
    kept = objects.apply(trained(objects, three), three[0][0])
    assert (kept[..., 1:] == three[0][0].present[..., 1:]).all()


def test_bands_of_rows_are_as_the_whole(monkeypatch):
    view, truth = next(iter(views(1, side=80)))
    whole = pixel_features(view, slice(0, 80))
    part = pixel_features(view, slice(30, 41))
    np.testing.assert_allclose(part, whole[30:41], atol=1e-4)
    stacker = PixelTrees(300, exclusive=False, outputs=1)
    rows, own = stacker.gather(view, truth, np.random.default_rng(3))
    monkeypatch.setattr(stacking, "_AT_ONCE", 80 * 7)
    again, same = stacker.gather(view, truth, np.random.default_rng(3))
    np.testing.assert_allclose(again, rows, atol=1e-4)
    assert (own == same).all()
    nothing, _ = stacker.gather(view, np.full_like(truth, -1), np.random.default_rng(3))
    assert not len(nothing)


def blobs(count, *, seed):
    """Bright regions that are right and dark ones that are not; every second image has dark ones alone."""
    rng = np.random.default_rng(seed)
    for at in range(count):
        truth = np.zeros((40, 40, 1), np.int8)
        image, codes = rng.integers(0, 20, (40, 40, 1)), np.zeros((40, 40, 1), np.uint16)
        for left, right in ((2, at % 2 == 0), (22, False)):
            where = slice(10, 20 + int(rng.integers(5))), slice(left, left + 12)
            codes[where] = int(0.8 * MAX_CODE)
            image[where] += 150 * right
            truth[where] = right
        yield View(image.astype(np.uint8), [codes, codes], codes), truth


def test_wrong_regions_and_empty_images_go_below_the_threshold():
    for stacker in (RegionTrees(1), ImageTrees(1)):
        model = trained(stacker, blobs(40, seed=0))
        for view, truth in blobs(4, seed=1):
            found = stacker.apply(model, view)
            if isinstance(stacker, RegionTrees):
                assert ((found > MAX_CODE // 2) == truth).all()
            else:
                assert (found > MAX_CODE // 2).any() == truth.any()
            assert (found[truth > 0] == view.present[truth > 0]).all()  # what is right stays
        with pytest.raises(InputError, match=r"\d are not, \d+ are; trees need 12 of both"):
            trained(stacker, [one for one in blobs(8, seed=0) if one[1].any()])
    empty = View(np.zeros((9, 9, 1), np.uint8), [], np.zeros((9, 9, 1), np.uint16))
    assert not RegionTrees(1).apply(Trees(None, (1,)), empty).any()


def test_both_take_away_what_either_does():
    trees = RegionTrees(1), ImageTrees(1)
    models = tuple(trained(one, blobs(40, seed=0)) for one in trees)
    for view, truth in blobs(4, seed=1):
        found = BothTrees(*trees).apply(models, view)
        assert ((found > MAX_CODE // 2) == truth).all()
        assert (found <= trees[0].apply(models[0], view)).all()


def test_one_answer_is_given_back():
    assert Trees.fit(np.zeros((3, 1), np.float32), np.ones(3, np.int8), seed=0, leaves=4, rate=0.1).probs(
        np.zeros((2, 1), np.float32)
    ).tolist() == [[0, 1], [0, 1]]


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.ensemble", None)
    with pytest.raises(InputError, match=r"pip install masksmith\[trees\]"):
        stacking.need_trees()
