from dataclasses import replace

import numpy as np
import pytest

from masksmith.data.catalog import Catalog, Sample, SubmissionFormat
from masksmith.data.groups import (
    bound_groups,
    find_likeness,
    merged,
    name_pattern,
    neighbour_groups,
    suggested_columns,
    suggestions,
)
from tests.data.alike import store_of, texture


def data(tmp_path, train, test=None, **more):
    """A catalogue and the likeness of its images; ``more`` is field of a sample -> id -> value."""
    samples = [
        Sample(name, f"{name}.png", **{field: of[name] for field, of in more.items() if name in of})
        for name in train
    ]
    test = test or {}
    form = SubmissionFormat.assumed(test, None)
    catalog = Catalog("", "", "", samples, [Sample(name, f"test/{name}.png") for name in test], form, [])
    return catalog, find_likeness(store_of(tmp_path / "a.npy", train), store_of(tmp_path / "b.npy", test))


@pytest.mark.parametrize(
    ("ids", "pattern"),
    [
        ([f"pat{p:03}_{k}" for p in range(6) for k in range(3)], "^([^_]+)_"),
        ([f"train_{p}_{k}" for p in range(6) for k in range(3)], "^([^_]+_[^_]+)_"),
        ([f"case{p}/slice-{k}" for p in range(4) for k in range(5)], "^([^/]+)/"),
        ([f"{p}{k}" for p in range(20) for k in "ab"], r"^(.*\d)[A-Za-z]+$"),
        ([f"img_{k}" for k in range(20)], None),
        ([f"{k:04}" for k in range(20)], None),
        ([f"{p}_{k}" for p in "ab" for k in range(9)], None),  # two kinds
        (["a_1", "a_2", "b_1", "c_1", "d_1", "e_1"], None),  # most are alone
    ],
)
def test_what_names_share(ids, pattern):
    assert name_pattern(ids) == pattern


def test_random_names_share_nothing():
    rng = np.random.default_rng(0)
    ids = ["".join(rng.choice(list("0123456789abcdef"), 10)) for _ in range(300)]
    assert name_pattern(ids) is None


def test_names_bind_where_pictures_agree(tmp_path):
    ids = [f"pat{p}_{k}" for p in range(6) for k in range(3)]
    catalog, alike = data(tmp_path, {name: texture(int(name[3])) + int(name[-1]) for name in ids})
    (found,) = suggestions(catalog, alike)
    assert (found.line, found.count, found.binds) == ("groups: {pattern: '^([^_]+)_'}", 6, True)
    assert bound_groups(catalog, alike) == {name: name[:4] for name in ids}

    catalog, alike = data(tmp_path, {name: texture(at) for at, name in enumerate(ids)})
    assert [one.binds for one in suggestions(catalog, alike)] == [False]
    assert bound_groups(catalog, alike) == {name: name for name in ids}


def test_columns_named_as_groups_bind_and_others_do_not(tmp_path):
    ids = [str(at) for at in range(12)]
    texts = {
        name: {"patient_id": f"p{int(name) // 2}", "scanner": "xy"[int(name) % 2], "essay": name}
        for name in ids
    }
    catalog, alike = data(tmp_path, {name: texture(int(name)) for name in ids}, texts=texts)
    assert suggested_columns(catalog.train) == {
        "patient_id": {name: texts[name]["patient_id"] for name in ids}
    }
    assert bound_groups(catalog, alike) == {name: f"p{int(name) // 2}" for name in ids}
    few = [replace(one, texts={"Location": "ab"[int(one.id) % 2]}) for one in catalog.train]
    catalog = replace(catalog, train=few)
    assert [one.binds for one in suggestions(catalog, alike)] == [False]  # two places: no five folds
    assert len(set(bound_groups(catalog, alike).values())) == 12


def test_known_groups_and_alike_pictures_join(tmp_path):
    images = {
        "a": texture(0),
        "b": texture(1),
        "c": texture(0) + 1,
        "d": texture(2),
        "e": texture(3),
        "f": texture(3),
    }
    flat = {name: np.full((8, 8, 1), 5, np.uint8) for name in "xy"}
    group = {"a": "p1", "b": "p1", "c": "p2", "d": "p2", "x": "p1", "y": "p3"}
    catalog, alike = data(tmp_path, images | flat, group=group)
    found = bound_groups(catalog, alike)
    assert {found[name] for name in "abcdx"} == {"p1 + p2"}
    assert (found["y"], found["e"], found["f"]) == ("p3", "e", "e")
    given = bound_groups(catalog, alike, split_is_given=True)  # nearly equal images do not contradict a split
    assert [given[name] for name in "abcdef"] == ["p1", "p1", "p2", "p2", "e", "e"]


def test_images_nearly_equal_to_one_test_image_join(tmp_path):
    train = {"a": texture(0), "b": texture(1), "p": texture(2)}
    catalog, alike = data(tmp_path, train, {"a": texture(1) + 1, "t": texture(2) + 2})
    assert bound_groups(catalog, alike) == {"a": "a", "b": "b", "p": "p"}
    assert alike.groups.tolist() == [0, 1, 2, 1, 2]
    assert (
        find_likeness(
            *(store_of(tmp_path / f"{name}.npy", of) for name, of in (("a", train), ("b", {})))
        ).groups.size
        == 3
    )
    assert neighbour_groups(alike) == {"a": "a", "b": "b", "p": "p"}


def test_names_of_groups_differ(tmp_path):
    catalog, alike = data(tmp_path, {"1": texture(0), "2": texture(1)}, group={"1": "2"})
    assert bound_groups(catalog, alike) == {"1": "2", "2": "2'"}
    assert merged(["a", "b", "c"], [{"a": "x", "c": "x"}]) == {"a": 0, "b": 1, "c": 0}
