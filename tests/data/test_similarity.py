"""Groups of images that look alike."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.core.errors import InputError
from masksmith.data.similarity import cluster, describe, similar_groups
from masksmith.data.store import Store, StoreWriter


def store(path, images):
    writer = StoreWriter(
        path, [(name, image.shape) for name, image in images.items()], dtype=images["a0"].dtype.type
    )
    for name, image in images.items():
        writer.write(name, image)
    writer.close()
    return Store(path)


def scenes(dtype=np.int16, kinds=3, each=5):
    """Images of a few kinds that differ in level, contrast and land cover, in mixed order."""
    rng = np.random.default_rng(1)
    images = {}
    for turn in range(each):
        for kind in range(kinds):
            amounts = rng.normal(1000 * kind, 50 + 20 * kind, (8, 8, 2))
            cover = np.full((8, 8, 1), 10 * (kind + 1))
            images[f"{'abc'[kind]}{turn}"] = np.concatenate([amounts, cover], axis=2).astype(dtype)
    return images


def test_scenes_of_a_kind_are_a_group(tmp_path):
    images = store(tmp_path / "x.npy", scenes())
    groups = similar_groups(images, 3, seed=0)
    assert {name[0]: group for name, group in groups.items()} == {
        "a": "similar 0",
        "b": "similar 1",
        "c": "similar 2",
    }
    for kind in "abc":
        assert len({group for name, group in groups.items() if name.startswith(kind)}) == 1
    drawn = []
    for seed, ours in ((1, 0), (1, 5), (2, 0)):
        cv2.setRNGSeed(seed)
        assert len(set(similar_groups(images, 3, seed=ours).values())) == 3
        drawn.append(cv2.randu(np.zeros(4), np.array([0.0]), np.array([1.0])).tolist())
    assert drawn[0] == drawn[1] != drawn[2]  # the caller's seed decides what OpenCV draws later
    assert similar_groups(images, 3, seed=0) == groups


def test_names_count_by_their_shares_and_odd_images_do_not_rule(tmp_path):
    images = scenes()
    images["a0"][..., 0] = -9999  # a failed sensor makes no group of its own
    points = describe(store(tmp_path / "x.npy", images))
    assert points.shape == (15, 2 + 2 + 3)
    assert points.min() >= 0
    assert points.max() <= 1 / np.sqrt(2)
    groups = similar_groups(Store(tmp_path / "x.npy"), 3, seed=0)
    assert groups["a0"] == groups["a1"] == groups["a4"]


def test_no_data_does_not_count(tmp_path):
    images = scenes(np.float32)
    for name in ("a1", "b2"):
        images[name][:3] = np.nan
    images["c3"][..., 1] = np.nan  # a band without any
    groups = similar_groups(store(tmp_path / "x.npy", images), 3, seed=0)
    assert [groups[f"{kind}0"] for kind in "abc"] == [groups["a1"], groups["b2"], groups["c3"]]


def test_more_groups_than_images_differ(tmp_path):
    images = {f"a{at}": np.full((4, 4, 1), at // 2, np.uint8) for at in range(6)}
    images = store(tmp_path / "x.npy", images)
    assert len(set(similar_groups(images, 3, seed=0).values())) == 3
    with pytest.raises(
        InputError, match="4 groups of similar images were asked for, but only 3 of the 6 images differ"
    ):
        similar_groups(images, 4, seed=0)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 3))
def test_clusters_are_full_numbered_and_locally_best(seed, count, dims):
    points = np.random.default_rng(seed).random((20, dims)).round(1)  # with equal ones
    different, home = np.unique(points, axis=0, return_inverse=True)
    if len(different) < count:
        return
    labels = cluster(points, count, seed=seed)
    np.testing.assert_array_equal(cluster(points, count, seed=seed), labels)
    assert list(dict.fromkeys(labels.tolist())) == list(range(count))
    own = np.empty(len(different), int)
    own[home.ravel()] = labels
    np.testing.assert_array_equal(own[home.ravel()], labels)  # equal points share a cluster
    centres = np.array([different[own == one].mean(axis=0) for one in range(count)])
    apart = ((different[:, None] - centres) ** 2).sum(axis=2)
    np.testing.assert_allclose(apart[np.arange(len(own)), own], apart.min(axis=1), atol=1e-6)
