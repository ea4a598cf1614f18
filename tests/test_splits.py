import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.errors import InputError
from masksmith.splits import FoldsConfig, assign_folds, coverage_class, make_folds, read_folds, write_folds


def coverage_class_by_search(foreground, total):
    """Checklist T4: the smallest i in 0..10 with coverage * 10 <= i, in exact arithmetic."""
    return next(i for i in range(11) if 10 * foreground <= i * total)


@given(st.integers(1, 10201).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_coverage_class_equals_the_search(pair):
    assert coverage_class(*pair) == coverage_class_by_search(*pair)


def test_coverage_class_borders():
    assert [coverage_class(n, 10) for n in range(11)] == list(range(11))
    assert coverage_class(1, 10201) == 1
    assert coverage_class(0, 0) == 0


CASES = st.integers(2, 5).flatmap(
    lambda count: st.tuples(
        st.just(count), st.lists(st.tuples(st.integers(0, 10), st.integers(0, 30)), min_size=40, max_size=120)
    )
)


@settings(deadline=None, max_examples=40)
@given(CASES, st.integers(0, 5))
def test_folds_partition_and_never_split_a_group(case, seed):
    count, images = case
    groups = [str(group) for _, group in images]
    if len(set(groups)) < count:
        return
    folds = assign_folds([kind for kind, _ in images], groups, count=count, seed=seed)
    assert set(folds) <= set(range(count))
    for group in set(groups):
        assert len({fold for fold, own in zip(folds, groups, strict=True) if own == group}) == 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 10), min_size=10, max_size=200), st.integers(2, 6), st.integers(0, 3))
def test_single_images_are_dealt_as_evenly_as_cards(classes, count, seed):
    folds = assign_folds(classes, [str(i) for i in range(len(classes))], count=count, seed=seed)
    for kind in set(classes):
        dealt = np.bincount(folds[np.array(classes) == kind], minlength=count)
        assert dealt.max() - dealt.min() <= 1
        # the brute-force twin: card i of a class goes to player i % count
        cards = np.bincount(np.arange(classes.count(kind)) % count, minlength=count)
        assert sorted(dealt) == sorted(cards)
    totals = np.bincount(folds, minlength=count)
    assert totals.max() - totals.min() <= 11


def test_same_seed_same_folds_other_seed_other_folds():
    classes, groups = [i % 4 for i in range(80)], [str(i) for i in range(80)]
    first, again, other = (assign_folds(classes, groups, count=5, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_large_group_leaves_its_class_to_the_other_folds():
    classes = [0] * 100
    groups = ["black"] * 20 + [str(i) for i in range(80)]
    folds = assign_folds(classes, groups, count=5, seed=0)
    np.testing.assert_array_equal(np.bincount(folds), [20] * 5)


def test_too_few_groups():
    with pytest.raises(InputError, match="3 folds of 2 groups"):
        assign_folds([0, 0, 0], ["a", "a", "b"], count=3, seed=0)


def make():
    counts = {f"{i:04d}": (i, 40) for i in range(40)}
    return make_folds(counts, {name: name for name in counts}, FoldsConfig(count=4))


def test_file_round_trip(tmp_path):
    folds = make()
    write_folds(folds, tmp_path / "folds.csv")
    again = read_folds(tmp_path / "folds.csv", ids=[row.id for row in folds.rows])
    assert again.hash == folds.hash
    assert set(again.inside(0)) | set(again.outside(0)) == {row.id for row in folds.rows}
    assert not set(again.inside(0)) & set(again.outside(0))
    assert again.balance().sum() == 40
    assert "coverage class" in str(again)
    assert {row.id: row.group for row in again.rows}["0012"] == "0012"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0003,0003", "x,0003", "the id 'x' is not in the data set"),
        ("0003,0003", "0004,0004", "the id '0004' stands twice"),
        ("id,group", "id,grup", "the column 'group' is missing; did you mean 'grup'"),
    ],
)
def test_an_edited_file_is_checked(tmp_path, old, new, message):
    folds = make()
    write_folds(folds, tmp_path / "folds.csv")
    text = (tmp_path / "folds.csv").read_text()
    (tmp_path / "folds.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        read_folds(tmp_path / "folds.csv", ids=[row.id for row in folds.rows])


def write_rows(path, rows):
    path.write_text("id,group,coverage,coverage_class,fold\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,g,0,0,0", "b,g,0,0,1"], "images of group 'g' are in folds 0 and 1"),
        (["a,a,0,0,0", "b,b,0,0,2"], r"the folds are \[0, 2\]"),
        (["a,a,0,0,0"], "1 training images have no fold, for example 'b'"),
        (["a,a,0,0,zero", "b,b,0,0,1"], "line 2.*'zero'"),
        (["a,a,0,11,0", "b,b,0,0,1"], "line 2: coverage_class 11; expected 0 to 10"),
    ],
)
def test_inconsistent_folds(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_folds(write_rows(tmp_path / "folds.csv", rows), ids=["a", "b"])
