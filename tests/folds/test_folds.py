from types import FunctionType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.core.errors import InputError
from masksmith.data.catalog import Sample
from masksmith.data.store import Store, StoreWriter
from masksmith.folds.assignment import assign_folds, deal_folds, hold_out, hold_out_highest
from masksmith.folds.config import FoldsConfig
from masksmith.folds.files import read_folds, write_folds
from masksmith.folds.table import (
    coverage_class,
    deal_values,
    given_folds,
    group_values,
    make_folds,
    merge_groups,
    need_groups,
    rarest_classes,
)


@given(st.integers(1, 10201).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_coverage_class_equals_the_search(pair):
    """Checklist T4: the smallest i in 0..10 with coverage * 10 <= i, in exact arithmetic."""
    foreground, total = pair
    assert coverage_class(*pair) == next(i for i in range(11) if 10 * foreground <= i * total)
    assert [coverage_class(n, 10) for n in range(11)] == list(range(11))
    assert (coverage_class(1, 10201), coverage_class(0, 0)) == (1, 0)


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
    groups = ["black"] * 20 + [str(i) for i in range(80)]
    np.testing.assert_array_equal(np.bincount(assign_folds([0] * 100, groups, count=5, seed=0)), [20] * 5)
    with pytest.raises(InputError, match="3 folds of 2 groups"):
        assign_folds([0, 0, 0], ["a", "a", "b"], count=3, seed=0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 10), min_size=2, max_size=200), st.floats(0.005, 0.995), st.integers(0, 3))
def test_one_split_holds_out_its_share_of_every_class(classes, share, seed):
    num = len(classes)
    held_out = hold_out(classes, [str(i) for i in range(num)], share=share, seed=seed) == 0
    for kind in set(classes):
        own = held_out[np.array(classes) == kind]
        assert abs(own.sum() - share * len(own)) <= 1
    assert held_out.sum() == min(max(round(share * num), 1), num - 1)


@settings(deadline=None, max_examples=60)
@given(CASES, st.floats(0.02, 0.6), st.integers(0, 3))
def test_one_split_of_groups_is_filled_up_by_single_images(case, share, seed):
    images = [*case[1], (0, 30), (1, 30)]
    groups = [str(group) if group < 6 else f"single {at}" for at, (_, group) in enumerate(images)]
    folds = hold_out([kind for kind, _ in images], groups, share=share, seed=seed)
    for group in set(groups):
        assert len({fold for fold, own in zip(folds, groups, strict=True) if own == group}) == 1
    if sum(group.startswith("single") for group in groups) >= share * len(images) + 1:
        assert abs((folds == 0).sum() - share * len(images)) <= 1


def test_a_small_share_is_held_out_too():
    for num, share in ((30, 0.02), (200, 0.02), (100, 0.05), (300, 0.01), (60, 0.99)):
        counts = {f"{k:03d}": (k % 11 * 9, 100) for k in range(num)}
        config = FoldsConfig(count=2, train=1, holdout_frac=share)
        folds = make_folds(counts, {name: name for name in counts}, config)
        assert abs(len(folds.inside(0)) - share * num) <= 1
        assert folds.inside(0)
        assert folds.inside(1)


def test_groups_too_large_for_a_split():
    groups = [str(at // 10) for at in range(40)]
    assert (hold_out([0] * 40, groups, share=0.2, seed=0) == 0).sum() == 10
    with pytest.raises(
        InputError, match=r"0\.05 of 40 images would hold nothing out: they are 4 groups, .* near 0\.25"
    ):
        hold_out([0] * 40, groups, share=0.05, seed=0)
    with pytest.raises(InputError, match=r"0\.95 of 40 images would hold all out: .* near 0\.75"):
        hold_out([0] * 40, groups, share=0.95, seed=0)
    with pytest.raises(InputError, match="2 folds of 1 groups"):
        hold_out([0, 0], ["a", "a"], share=0.5, seed=0)


def drawn(num=200):
    """Coverage of ``num`` images, of which a third is empty, each its own group."""
    counts = {f"{i:04d}": (0 if i % 3 == 0 else i % 40, 40) for i in range(num)}
    return counts, {name: name for name in counts}


def test_one_split_of_a_data_set():
    counts, groups = drawn()
    folds = make_folds(counts, groups, FoldsConfig(count=2, train=1, holdout_frac=0.15))
    assert (len(folds.inside(0)), folds.count) == (30, 2)
    assert set(folds.outside(0)) == set(folds.inside(1))
    halves = make_folds(counts, groups, FoldsConfig(count=2, train=1, holdout_frac=0.5))
    assert halves == make_folds(counts, groups, FoldsConfig(count=2))


def test_stratified_by_whether_there_is_anything():
    counts, groups = drawn(300)
    folds = make_folds(counts, groups, FoldsConfig(count=2, train=1, holdout_frac=0.15, stratify="non_empty"))
    held_out = [counts[name][0] > 0 for name in folds.inside(0)]
    assert abs(held_out.count(False) - 15) <= 1
    assert abs(held_out.count(True) - 30) <= 1
    assert {row.coverage_class for row in folds.rows} > {0, 1}  # what is written stays the coverage class


def test_without_stratification_the_shares_of_classes_vary():
    counts, groups = drawn()
    empty = {}
    for stratify in ("none", "coverage"):
        config = [FoldsConfig(count=4, stratify=stratify, seed=seed) for seed in range(5)]
        tables = [make_folds(counts, groups, one).balance() for one in config]
        assert all(table.sum(1).tolist() == [50] * 4 for table in tables) or stratify == "coverage"
        empty[stratify] = np.ptp([table[:, 0] for table in tables], axis=1)
    assert empty["coverage"].max() <= 1
    assert empty["none"].min() > 1


def test_dealt_out_by_a_number():
    values = [5.0, 1.0, 3.0, 4.0, 2.0, 6.0]
    np.testing.assert_array_equal(deal_folds(values, list("abcdef"), count=2), [0, 0, 0, 1, 1, 1])
    # a group has the mean of its numbers: (5 + 1) / 2 = 3 comes after 2, before 4 and beside "c"
    np.testing.assert_array_equal(
        deal_folds([5.0, 1.0, 3.5, 4.0, 2.0], ["a", "a", "c", "d", "e"], count=2), [1, 1, 0, 1, 0]
    )
    with pytest.raises(InputError, match="3 folds of 2 groups"):
        deal_folds([1.0, 2.0, 3.0], ["a", "a", "b"], count=3)


def test_folds_dealt_by_a_column():
    counts, groups = drawn(100)
    values = {name: float((7 * i) % 100) for i, name in enumerate(counts)}
    folds = make_folds(counts, groups, FoldsConfig(deal_by="z"), values=values)
    for fold in range(5):
        assert sorted(values[name] for name in folds.inside(fold)) == [float(z) for z in range(fold, 100, 5)]


def test_numbers_to_deal_by():
    samples = [Sample("a", "a.png", values={"z": 3.0}), Sample("b", "b.png", values={"z": 5.0, "y": 1.0})]
    assert deal_values(samples, "z") == {"a": 3.0, "b": 5.0}
    with pytest.raises(InputError, match=r"deal_by: no side table has a column 'x' of numbers; Known: y, z"):
        deal_values(samples, "x")
    with pytest.raises(InputError, match=r"deal_by: no side table .*no table with a column of numbers"):
        deal_values([Sample("a", "a.png")], "z")
    with pytest.raises(InputError, match="deal_by: 1 training images have no 'y', for example 'a'"):
        deal_values(samples, "y")


def test_rules_that_do_not_go_together():
    for values, message in (
        ({"holdout_frac": 0.2}, "goes with count 2, train 1 and refit false, not with count 5, train None"),
        ({"holdout_frac": 0.2, "count": 2, "train": 1, "refit": True}, "refit True"),
        ({"deal_by": "z", "stratify": "none"}, "deal_by: 'z' deals images out in their order"),
        ({"fold_by": "z", "stratify": "none"}, "fold_by: 'z' says the fold of each image"),
        (
            {"stratify": "like_test"},
            "stratify: 'like_test' holds out the images that look most like the test set",
        ),
        ({"deal_by": "z", "holdout_frac": 0.2, "count": 2, "train": 1}, "deal_by: 'z' deals images out"),
    ):
        with pytest.raises(ValueError, match=message):
            FoldsConfig(**values)


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
    assert again.groups(["0012", "0001"]).tolist() == ["0012", "0001"]


def test_a_file_of_folds_is_checked(tmp_path):
    folds, path = make(), tmp_path / "folds.csv"
    write_folds(folds, path)
    text = path.read_text()
    for old, new, message in (
        ("0003,0003", "x,0003", "the id 'x' is not in the data set"),
        ("0003,0003", "0004,0004", "the id '0004' appears twice"),
        ("id,group", "id,grup", "the column 'group' is missing; did you mean 'grup'"),
    ):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(InputError, match=message):
            read_folds(path, ids=[row.id for row in folds.rows])
    for rows, message in (
        (["a,g,0,0,0", "b,g,0,0,1"], "images of group 'g' are in folds 0 and 1"),
        (["a,a,0,0,0", "b,b,0,0,2"], r"the folds are \[0, 2\]"),
        (["a,a,0,0,0"], "1 training images have no fold, for example 'b'"),
        (["a,a,0,0,zero", "b,b,0,0,1"], "line 2.*'zero'"),
        (["a,a,0,11,0", "b,b,0,0,1"], "line 2: coverage_class 11; expected 0 to 10"),
    ):
        path.write_text("\n".join(["id,group,coverage,coverage_class,fold", *rows, ""]))
        with pytest.raises(InputError, match=message):
            read_folds(path, ids=["a", "b"])


def samples(**columns):
    """Images a, b, c … with a column of texts or numbers each."""
    count = max(map(len, columns.values()))
    return [
        Sample(
            "abcdefgh"[at],
            "x.png",
            values={name: cells[at] for name, cells in columns.items() if isinstance(cells[at], float)},
            texts={name: cells[at] for name, cells in columns.items() if isinstance(cells[at], str)},
        )
        for at in range(count)
    ]


def test_values_of_a_column_of_texts_or_numbers():
    found = samples(site=["lake", "lake", "desert"], patient=["007", "7", "7"])
    assert group_values(found, "site") == {"a": "lake", "b": "lake", "c": "desert"}
    assert group_values(found, "patient") == {"a": "007", "b": "7", "c": "7"}  # as it is spelt


def test_columns_that_group_nothing():
    for columns, column, message in (
        (
            {"site": ["u", "u"], "depth": [1.0, 2.0]},
            "sit",
            "no side table has the column 'sit'; did you mean 'site'",
        ),
        ({"site": ["u", " "]}, "site", "1 training images have no 'site', for example 'b'"),
        ({"site": ["u", None]}, "site", "1 training images have no 'site', for example 'b'"),
        (
            {"patient": ["p1", "p2"]},
            "patient",
            "every one of the 2 images has its own 'patient' .for example 'p1'",
        ),
        ({"": [None]}, "site", "column 'site'; there is no table with a column"),
    ):
        with pytest.raises(InputError, match=f"folds.group_by: .*{message}"):
            group_values(samples(**columns), column)


LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 8), st.booleans()), min_size=1, max_size=14)


@settings(deadline=None, max_examples=80)
@given(LABELS)
def test_merged_groups_are_the_connected_images(images):
    """Twin: join any two images that share a value, or pixels that are no blank's, until nothing changes."""
    values = {f"{at:02d}": f"site {value}" for at, (value, _, _) in enumerate(images)}
    keys = {f"{at:02d}": f"{key}{' blank' if blank else ''}" for at, (_, key, blank) in enumerate(images)}
    blank = {name for name, key in keys.items() if "blank" in key}
    groups = merge_groups(keys, values, blank=blank)
    reach = {name: {name} for name in values}
    for _ in values:
        for one in values:
            for two in values:
                if values[one] == values[two] or (keys[one] == keys[two] and one not in blank):
                    reach[one] |= reach[two]
                    reach[two] |= reach[one]
    for one in values:
        for two in values:
            assert (groups[one] == groups[two]) == (two in reach[one])


def test_groups_are_named_after_their_values():
    duplicates = {name: f"own {name}" for name in "abcdefg"} | {"b": "same", "c": "same"}
    values = dict(zip("abcdefg", ["lake", "lake", "sea", "bay", "fen", "fen", "bog"], strict=True))
    groups = merge_groups(duplicates, values, blank=())
    assert groups["a"] == groups["c"] == "lake + sea"
    assert groups["d"] == "bay"
    chained = merge_groups(dict.fromkeys("abcdefg", "same"), values, blank=())
    assert set(chained.values()) == {"bay + 4 more"}


def test_folds_that_were_made_without_the_column(tmp_path):
    folds = make()
    values = {row.id: f"site {int(row.id) // 4}" for row in folds.rows}
    with pytest.raises(InputError, match=r"'site' was asked for, but .*folds.csv has 'site 0' in two groups"):
        need_groups(folds, values, tmp_path / "folds.csv", column="site")
    need_groups(folds, {row.id: row.id for row in folds.rows}, tmp_path / "folds.csv", column="site")


def test_verbs_named_as_packages_stay_verbs():
    import masksmith.folds.table
    import masksmith.recipes.recipe

    assert isinstance(masksmith.folds, FunctionType)
    assert isinstance(masksmith.recipes, FunctionType)


def stored(path, masks):
    writer = StoreWriter(path, [(name, mask.shape) for name, mask in masks.items()], dtype=np.uint8)
    for name, mask in masks.items():
        writer.write(name, mask)
    writer.close()
    return Store(path)


def test_folds_of_class_maps_spread_the_rarest_class(tmp_path):
    """By hand, and spread: each of the images with the rare class 2 is in a fold of its own."""
    masks = {f"{i:02d}": np.zeros((4, 5, 1), np.uint8) for i in range(20)}
    for at, name in enumerate(masks):
        masks[name][0, : 1 + at % 5] = at % 2  # class 1 in half of them
    for name in ("03", "08", "12", "17"):
        masks[name][3, 3] = 2
    masks["19"][:] = 255
    kinds = rarest_classes(stored(tmp_path / "m.npy", masks), 4)
    assert kinds == {
        name: 2 if name in ("03", "08", "12", "17") else int(int(name) % 2 and name != "19") for name in masks
    }
    tied = {"a": np.array([[[1], [1], [2]]], np.uint8)}
    assert rarest_classes(stored(tmp_path / "t.npy", tied), 3) == {
        "a": 2
    }  # of two in as many images the one of fewer pixels
    counts = dict.fromkeys(masks, (10, 20))
    made = make_folds(counts, {name: name for name in masks}, FoldsConfig(count=4), kinds=kinds)
    assert [sum(kinds[name] == 2 for name in made.inside(fold)) for fold in range(4)] == [1] * 4


def test_a_split_of_the_data_that_divides_identical_images():
    counts = dict.fromkeys("abcd", (1, 4))
    asked = FoldsConfig(count=2, train=1)
    made = make_folds(
        counts, {"a": "a", "b": "b", "c": "c", "d": "c"}, asked, given={"a": 0, "b": 1, "c": 1, "d": 1}
    )
    assert (made.inside(0), made.inside(1)) == (["a"], ["b", "c", "d"])
    with pytest.raises(
        InputError, match=r"1 groups of identical images, or .* are in several parts .* example 'c' and 'd'"
    ):
        make_folds(
            counts, {"a": "a", "b": "b", "c": "c", "d": "c"}, asked, given={"d": 0, "a": 1, "b": 1, "c": 1}
        )


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=20, max_size=150), st.integers(2, 5)
)
def test_two_divisions_are_spread_at_once(images, count):
    """Each class of either is spread about as evenly as by chance at best, and one with one class changes nothing."""
    kinds, sources = [kind for kind, _ in images], [source for _, source in images]
    groups = [str(at) for at in range(len(images))]
    folds = assign_folds(kinds, groups, count=count, seed=0, further=[sources])
    for labels in (kinds, sources):
        for label in set(labels):
            dealt = np.bincount(folds[np.array(labels) == label], minlength=count)
            assert dealt.max() - dealt.min() <= 4
    alone = assign_folds(kinds, groups, count=count, seed=0)
    np.testing.assert_array_equal(
        alone, assign_folds(kinds, groups, count=count, seed=0, further=[[1] * len(kinds)])
    )


def test_the_highest_are_held_out_group_by_group():
    values, groups = [0.9, 0.1, 0.8, 0.7, 0.2, 0.6], ["a", "a", "b", "c", "d", "d"]
    assert hold_out_highest(values, groups, share=0.5).tolist() == [1, 1, 0, 0, 1, 1]
    assert hold_out_highest(values, groups, share=0.7).tolist() == [0, 0, 0, 0, 1, 1]
    with pytest.raises(InputError, match="would hold nothing out"):
        hold_out_highest([1.0, 0.0, 0.5, 0.5], list("aabb"), share=0.2)


def test_folds_by_numbers_and_names():
    asked = FoldsConfig(count=3, fold_by="x")
    assert given_folds({"a": "10", "b": "9", "c": "2", "d": "9"}, asked) == {"a": 2, "b": 1, "c": 0, "d": 1}
    assert given_folds({"a": "q", "b": "9", "c": "p"}, asked) == {"a": 2, "b": 0, "c": 1}
    with pytest.raises(InputError, match="expected 2 to 100 values"):
        given_folds({"a": "q"}, asked)
    assert "fold_by" not in FoldsConfig().kind  # folds of before the key are taken


def _repeated(repeats, *, groups=None, count=3, num=30):
    ids = [f"{at:03d}" for at in range(num)]
    counts = {name: (at % 11, 10) for at, name in enumerate(ids)}
    config = FoldsConfig(count=count, repeats=repeats, seed=4)
    return make_folds(counts, groups or {name: name for name in ids}, config)


def test_repeated_folds_are_those_of_the_next_seeds(tmp_path):
    """Each repeat is a partition, and the first that of no repeats; the file holds a column for each further one."""
    once, made = _repeated(1), _repeated(3)
    assert (made.count, made.repeats, made.total) == (3, 3, 9)
    for repeat in range(3):
        parts = [made.inside(fold) for fold in range(3 * repeat, 3 * repeat + 3)]
        assert sorted(name for part in parts for name in part) == [row.id for row in made.rows]
        assert made.outside(3 * repeat) == [row.id for row in made.rows if row.id not in parts[0]]
    assert [made.inside(fold) for fold in range(3)] == [once.inside(fold) for fold in range(3)]
    assert made.inside(3) not in [once.inside(fold) for fold in range(3)]
    assert made.balance().sum(axis=1).tolist() == [10] * 9
    assert len(str(made).splitlines()) == 10
    assert made.hash != once.hash
    write_folds(made, tmp_path / "folds.csv")
    assert (
        (tmp_path / "folds.csv")
        .read_text()
        .startswith("id,group,coverage,coverage_class,fold,fold_2,fold_3\n")
    )
    assert read_folds(tmp_path / "folds.csv", ids=[row.id for row in made.rows]) == made
    write_folds(once, tmp_path / "folds.csv")
    assert (tmp_path / "folds.csv").read_text().startswith("id,group,coverage,coverage_class,fold\n")


def test_repeats_that_cannot_be_are_refused(tmp_path):
    places = {
        f"{at:03d}": str(at % 3) for at in range(30)
    }  # three places, three folds: one way to divide them
    with pytest.raises(InputError, match=r"folds\.repeats: repeat 2 has the same folds as repeat 1, .*\(3\)"):
        _repeated(2, groups=places)
    config = FoldsConfig(count=2, repeats=2, train=1)
    with pytest.raises(
        InputError, match=r"folds\.repeats: 2, but the data's own split is the same each time"
    ):
        make_folds({"a": (0, 1), "b": (1, 1)}, {"a": "a", "b": "b"}, config, given={"a": 0, "b": 1})
    for more in ({"holdout_frac": 0.2, "count": 2, "train": 1}, {"deal_by": "z"}, {"fold_by": "site"}):
        with pytest.raises(ValueError, match=f"repeats: 2 with {next(iter(more))}"):
            FoldsConfig(repeats=2, **more)
    with pytest.raises(ValueError, match="repeats: 10 with 100 folds; expected fewer than 999"):
        FoldsConfig(repeats=10, count=100)
    made, path = _repeated(2), tmp_path / "folds.csv"
    write_folds(made, path)
    whole = path.read_text()
    ids = [row.id for row in made.rows]
    path.write_text(whole.replace(f",{made.rows[0].more[0]}\n", ",9\n"))
    with pytest.raises(InputError, match=r"fold_2: the folds are \[.*9\]; expected 3, 4 … without a gap"):
        read_folds(path, ids=ids)
