"""Groups of a side table's column on their way: catalogue, folds, validation, tuning, report."""

import re

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.data.layouts import read_catalog
from masksmith.metrics import get_metric
from masksmith.postprocess.operators import PLAIN
from masksmith.prediction.store import open_codes
from masksmith.project.folder import Project

OTHER = r"{}: {} was asked for, but .*folds.csv was made with another"


@pytest.fixture
def sites(download):
    """The generated data with a table that gives the training images ten sites."""
    ids = [sample.id for sample in read_catalog(download).train]
    rows = [f"{name},site {at % 10},{at},{at % 5}" for at, name in enumerate(ids)]
    (download / "sites.csv").write_text("\n".join(["id,site,row,kind", *rows]) + "\n")
    return download


@pytest.fixture
def out(sites, tmp_path):
    """A project whose images are read, and which has no folds."""
    ms.check(sites, tmp_path / "project")
    return tmp_path / "project"


def folds(out, **changes):
    return ms.folds(out, recipe="smoke", overrides={f"folds.{key}": value for key, value in changes.items()})


def test_a_site_stays_in_one_fold(sites, out):
    made = folds(out, group_by="site")
    home = {row.id: row.fold for row in made.rows}
    site_of = {sample.id: sample.texts["site"] for sample in read_catalog(sites).train}
    for site in set(site_of.values()):
        assert len({home[name] for name in home if site_of[name] == site}) == 1
    blank = Project.open(out).blank_train
    assert len({site_of[name] for name in site_of if name in blank}) > 1  # and yet these sites are apart:
    assert {row.group for row in made.rows} == {f"site {at}" for at in range(10)}
    assert folds(out, group_by="site").hash == made.hash
    with pytest.raises(InputError, match=OTHER.format("group_by", None)):
        folds(out)
    with pytest.raises(InputError, match=OTHER.format("group_by", "'kind'")):
        folds(out, group_by="kind")


def test_folds_of_before_the_column_are_refused(out):
    folds(out)
    with pytest.raises(InputError, match=OTHER.format("group_by", "'site'")):
        folds(out, group_by="site")
    Project.open(out).ledger.forget("folds.group_by")  # an older version, or a person, made them
    folds(out)
    with pytest.raises(InputError, match=r"group_by: 'site' was asked for, but .* in two groups"):
        folds(out, group_by="site")


def test_a_split_that_is_refused_leaves_no_folds(out):
    split = {"group_by": "site", "count": 2, "train": 1}
    with pytest.raises(InputError, match=r"folds\.holdout_frac: 0\.02 of 40 images would hold nothing out"):
        folds(out, **split, holdout_frac=0.02)
    with pytest.raises(InputError, match=r"folds.deal_by: no side table has a column 'depth' of numbers"):
        folds(out, deal_by="depth")
    assert len(folds(out, **split, holdout_frac=0.1).inside(0)) == 4


def test_folds_by_another_rule_are_refused(out):
    made = folds(out, count=2, holdout_frac=0.2)
    assert len(made.inside(0)) < len(made.inside(1))
    with pytest.raises(
        InputError, match=r"holdout_frac None, stratify coverage, .* was made by another rule"
    ):
        folds(out, count=2)
    (out / "folds.csv").unlink()
    assert len({row.fold for row in folds(out, deal_by="row").rows}) == 3
    with pytest.raises(InputError, match="deal_by None was asked for"):
        folds(out)
    (out / "folds.csv").unlink()
    made = folds(out)
    ledger = Project.open(out).ledger
    ledger.forget("folds.kind")  # an older version made them, by the default rule
    assert folds(out) == made
    for change in ({"stratify": "none"}, {"deal_by": "row"}):
        with pytest.raises(InputError, match="was made by another rule"):
            folds(out, **change)
    ledger.forget("folds.seed")  # folds that a person wrote follow any rule
    assert folds(out, stratify="none") == made


def test_folds_that_a_column_says(sites, out):
    """A fold column, or each site left out once."""
    made = folds(out, fold_by="kind", count=5)
    kind_of = {sample.id: sample.texts["kind"] for sample in read_catalog(sites).train}
    assert {row.id: str(row.fold) for row in made.rows} == kind_of
    (out / "folds.csv").unlink()
    made = folds(out, fold_by="site", count=10)
    assert [len(made.inside(fold)) for fold in range(10)] == [4] * 10
    with pytest.raises(InputError, match=r"folds\.count: 3 was asked for"):
        folds(out)
    (out / "folds.csv").unlink()
    for change, message in (
        (
            {"fold_by": "site"},
            r"folds.fold_by: 'site' has 10 values \(site 0, .*folds.count 3; set folds.count=10",
        ),
        ({"fold_by": "sight"}, "folds.fold_by: no side table has the column 'sight'; did you mean 'site'"),
        ({"fold_by": "groups()"}, r"folds.fold_by: 'groups\(\)' has \d+ values"),
    ):
        with pytest.raises(InputError, match=message):
            folds(out, **change)
    assert not (out / "folds.csv").exists()


def test_like_test_needs_test_images(out):
    like = {"stratify": "like_test", "holdout_frac": 0.2, "count": 2, "train": 1}
    with pytest.raises(
        InputError, match="like_test compares 40 training images with 8 test images; expected 20 of"
    ):
        folds(out, **like)


def test_a_column_is_checked_before_training(sites, tmp_path):
    out = tmp_path / "project"
    for column, message in (
        ("sight", "the column 'sight'; did you mean 'site'"),
        ("row", "40 images has its own 'row'"),
    ):
        with pytest.raises(InputError, match=f"folds.group_by: .*{message}"):
            ms.compete(sites, out=out, recipe="smoke", overrides={"folds.group_by": column})
        assert not (out / "runs").exists()
        assert not (out / "folds.csv").exists()


def test_a_catalogue_of_an_older_version_learns_the_columns(sites, out):
    value = read_json(out / "data.json")
    for sample in (*value["train"], *value["test"]):
        del sample["texts"]
    write_json(out / "data.json", value)
    with pytest.raises(InputError, match="no side table has the column 'site'"):
        folds(out, group_by="site")
    ms.check(sites, out)
    assert len({row.group for row in folds(out, group_by="site").rows}) == 10


def scores_by_hand(out, name):
    """The plain score of fold 0 from what lies in the project's files, groups from the table."""
    project, metric = Project.open(out), get_metric(name)
    site_of = {sample.id: sample.texts["site"] for sample in project.catalog.train}
    store, masks = open_codes(project.run().oof(0)), project.cache.train_masks
    names = [one for one in project.folds.inside(0) if one not in project.blank_train]
    rows = np.stack([metric.stats(PLAIN.apply(store[one][..., 0]), masks[one][..., 0]) for one in names])
    return metric.score(rows, np.array([site_of[one] for one in names]))


@pytest.mark.slow
def test_the_whole_way(sites, tmp_path):
    """A metric of groups, and one that is better where it is lower."""
    for metric, sign, searched in (("iou_by_group", 1, "top"), ("hausdorff_95", -1, "bottom")):
        out = tmp_path / metric
        options = {"metric": metric, "folds.group_by": "site", "training.select": "best"}
        options |= {"training.stages.0.epochs": 4, "tuning.bottom_thresholds": [0.3, 0.5, 0.7]}
        page = ms.compete(sites, out=out, recipe="smoke", overrides=options).report.read_text()
        tuning = read_json(out / "tuning.json")
        assert tuning["higher_is_better"] == (sign == 1)
        assert tuning["searched"].startswith(searched)
        assert tuning["plain"] == pytest.approx(scores_by_hand(out, metric))
        assert sign * tuning["tuned"] >= sign * tuning["plain"]
        facts = read_json(Project.open(out).run().final(0).with_suffix(".json"))
        assert facts["best_epoch"] >= 1
        assert sign * facts["best_score"] >= 0
        assert metric in page
        assert "<h3>Groups</h3>" in page
        assert re.search(r"\d groups of held-out images, the worst first", page)
