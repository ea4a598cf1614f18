"""Groups of a side table's column on their way: catalogue, folds, validation, tuning, report."""

import re

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.data.layouts import read_catalog
from masksmith.metrics import get_metric
from masksmith.postprocess.operators import PLAIN, apply_rule
from masksmith.prediction.store import open_codes
from masksmith.project.folder import Project
from tests.conftest import TINY

BY_SITE = TINY | {"folds.group_by": "site"}


@pytest.fixture
def sites(download):
    """The generated data with a table that gives the training images ten sites."""
    ids = [sample.id for sample in read_catalog(download).train]
    rows = [f"{name},site {at % 10},{at},{at % 5}" for at, name in enumerate(ids)]
    (download / "sites.csv").write_text("\n".join(["id,site,row,kind", *rows]) + "\n")
    return download


def test_a_site_stays_in_one_fold(sites, tmp_path):
    out = tmp_path / "project"
    ms.check(sites, out)
    folds = ms.folds(out, overrides=BY_SITE)
    home = {row.id: row.fold for row in folds.rows}
    site_of = {sample.id: sample.texts["site"] for sample in read_catalog(sites).train}
    for site in set(site_of.values()):
        assert len({home[name] for name in home if site_of[name] == site}) == 1
    blank = Project.open(out).blank_train
    assert len({site_of[name] for name in site_of if name in blank}) > 1  # and yet these sites are apart:
    assert {row.group for row in folds.rows} == {f"site {at}" for at in range(10)}
    assert ms.folds(out, overrides=BY_SITE).hash == folds.hash
    with pytest.raises(
        InputError, match=r"group_by: None was asked for, but .*folds.csv was made with another"
    ):
        ms.folds(out, overrides=TINY)
    with pytest.raises(
        InputError, match=r"group_by: 'kind' was asked for, but .*folds.csv was made with another"
    ):
        ms.folds(out, overrides=TINY | {"folds.group_by": "kind"})


def test_a_split_that_is_refused_leaves_no_folds(sites, tmp_path):
    out = tmp_path / "project"
    ms.check(sites, out)
    split = BY_SITE | {"folds.count": 2, "folds.train": 1}
    with pytest.raises(InputError, match=r"folds\.holdout_frac: 0\.02 of 40 images would hold nothing out"):
        ms.folds(out, overrides=split | {"folds.holdout_frac": 0.02})
    assert len(ms.folds(out, overrides=split | {"folds.holdout_frac": 0.1}).inside(0)) == 4


def test_folds_by_another_rule_are_refused(sites, tmp_path):
    out = tmp_path / "project"
    ms.check(sites, out)
    split = {"folds": {"count": 2, "train": 1, "holdout_frac": 0.2}}
    folds = ms.folds(out, overrides=TINY | {f"folds.{key}": one for key, one in split["folds"].items()})
    assert len(folds.inside(0)) < len(folds.inside(1))
    with pytest.raises(
        InputError, match=r"holdout_frac None, stratify coverage, .* was made by another rule"
    ):
        ms.folds(out, overrides=TINY | {"folds.count": 2})
    dealt = tmp_path / "dealt"
    ms.check(sites, dealt)
    by_row = TINY | {"folds.deal_by": "row"}
    found = {name: row.fold for row in ms.folds(dealt, overrides=by_row).rows for name in [row.id]}
    assert len(set(found.values())) == 3
    with pytest.raises(InputError, match="deal_by None was asked for"):
        ms.folds(dealt, overrides=TINY)
    other = tmp_path / "other"
    ms.check(sites, other)
    with pytest.raises(InputError, match=r"folds.deal_by: no side table has a column 'depth' of numbers"):
        ms.folds(other, overrides=TINY | {"folds.deal_by": "depth"})


def test_folds_of_an_older_version_were_made_by_the_default_rule(sites, tmp_path):
    ms.check(sites, tmp_path / "p")
    made = ms.folds(tmp_path / "p", overrides=TINY)
    ledger = Project.open(tmp_path / "p").ledger
    ledger.forget("folds.kind")
    assert ms.folds(tmp_path / "p", overrides=TINY) == made
    for change in ({"folds.stratify": "none"}, {"folds.deal_by": "row"}):
        with pytest.raises(InputError, match="was made by another rule"):
            ms.folds(tmp_path / "p", overrides=TINY | change)
    ledger.forget("folds.seed")  # folds that a person wrote follow any rule
    assert ms.folds(tmp_path / "p", overrides=TINY | {"folds.stratify": "none"}) == made


@pytest.mark.parametrize(
    ("column", "message"),
    [("sight", "the column 'sight'; did you mean 'site'"), ("row", "40 images has its own 'row'")],
)
def test_a_column_is_checked_before_training(sites, tmp_path, column, message):
    out = tmp_path / "project"
    with pytest.raises(InputError, match=f"folds.group_by: .*{message}"):
        ms.compete(sites, out=out, overrides=TINY | {"folds.group_by": column})
    assert not (out / "runs").exists()
    assert not (out / "folds.csv").exists()


def test_folds_of_before_the_column_are_refused(sites, tmp_path):
    out = tmp_path / "project"
    ms.check(sites, out)
    ms.folds(out, overrides=TINY)
    with pytest.raises(
        InputError, match=r"group_by: 'site' was asked for, but .*folds.csv was made with another"
    ):
        ms.folds(out, overrides=BY_SITE)
    Project.open(out).ledger.forget("folds.group_by")  # an older version, or a person, made them
    ms.folds(out, overrides=TINY)
    with pytest.raises(InputError, match=r"group_by: 'site' was asked for, but .* in two groups"):
        ms.folds(out, overrides=BY_SITE)


def test_a_catalogue_of_an_older_version_learns_the_columns(sites, tmp_path):
    out = tmp_path / "project"
    ms.check(sites, out)
    value = read_json(out / "data.json")
    for sample in (*value["train"], *value["test"]):
        del sample["texts"]
    write_json(out / "data.json", value)
    with pytest.raises(InputError, match="no side table has the column 'site'"):
        ms.folds(out, overrides=BY_SITE)
    ms.check(sites, out)
    assert len({row.group for row in ms.folds(out, overrides=BY_SITE).rows}) == 10


def scores_by_hand(out, name):
    """The plain score of fold 0 from what lies in the project's files, groups from the table."""
    project, metric = Project.open(out), get_metric(name)
    site_of = {sample.id: sample.texts["site"] for sample in project.catalog.train}
    store, masks = open_codes(project.run().oof(0)), project.cache.train_masks
    names = [one for one in project.folds.inside(0) if one not in project.blank_train]
    rows = np.stack(
        [metric.stats(apply_rule(store[one][..., 0], PLAIN), masks[one][..., 0]) for one in names]
    )
    return metric.score(rows, np.array([site_of[one] for one in names]))


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["iou_by_group", "hausdorff_95"])
def test_the_whole_way(sites, tmp_path, metric):
    """A metric of groups, and one that is better where it is lower."""
    out = tmp_path / "project"
    options = {"metric": metric, "training.select": "best", "tuning.bottom_thresholds": [0.3, 0.5, 0.7]}
    result = ms.compete(sites, out=out, overrides=BY_SITE | options)
    tuning = read_json(out / "tuning.json")
    assert tuning["higher_is_better"] == (metric == "iou_by_group")
    assert tuning["searched"].startswith("top" if metric == "iou_by_group" else "bottom")
    assert tuning["plain"] == pytest.approx(scores_by_hand(out, metric))
    sign = 1 if tuning["higher_is_better"] else -1
    assert sign * tuning["tuned"] >= sign * tuning["plain"]
    facts = read_json(Project.open(out).run().final(0).with_suffix(".json"))
    assert facts["best_epoch"] >= 1
    assert sign * facts["best_score"] >= 0
    assert result.report is not None
    page = result.report.read_text()
    assert metric in page
    assert "<h3>Groups</h3>" in page
    assert re.search(r"\d groups of the held-out images, the worst first\.", page)
