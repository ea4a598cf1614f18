import json

import pytest

from masksmith.core.errors import InputError
from masksmith.project.folder import Project
from masksmith.project.members import read_members


def test_folds_are_read_once_and_again_after_a_change(project):
    opened = Project.open(project)
    folds = opened.folds
    assert opened.folds is folds
    opened.folds_csv.write_text(opened.folds_csv.read_text())
    assert opened.folds is not folds
    assert opened.folds == folds
    opened.folds_csv.write_text(opened.folds_csv.read_text() + "9999,0,0,9999\n")
    with pytest.raises(InputError, match=r"folds\.csv: line 42 has 4 cells"):
        opened.folds  # noqa: B018
    opened.folds_csv.unlink()
    with pytest.raises(InputError, match=r"folds\.csv: not there yet; run `masksmith folds"):
        opened.folds  # noqa: B018


def test_members_of_older_versions_and_edited_ones(project):
    opened = Project.open(project)
    entry = {"run": opened.run().path.name, "fold": 0, "interim": False}
    opened.members_json.parent.mkdir(exist_ok=True)
    opened.members_json.write_text(json.dumps({"members": [entry, entry | {"fold": 1}]}))
    read = read_members(opened, None)
    assert [(one.fold, one.weight, one.ensemble) for one in read] == [(0, 1.0, None), (1, 1.0, None)]
    for broken in ({"members": [{"fold": 0}]}, [1], {"members": [entry | {"weight": "much"}]}):
        opened.members_json.write_text(json.dumps(broken))
        with pytest.raises(InputError, match=r"members\.json: not what masksmith writes"):
            read_members(opened, None)
    opened.members_json.write_text(json.dumps({"members": [entry], "ensemble": {"name": "x"}}))
    with pytest.raises(InputError, match=r"members\.json: members: missing"):
        read_members(opened, None)
    with pytest.raises(InputError, match=r"no run 'other'; there are smoke-"):
        opened.run("other")
