"""Lists of operators in a project: what tuning scores is what submit, a bundle and apply make."""

import json
import zipfile
from dataclasses import asdict

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core import interrupt
from masksmith.core.errors import InputError, StoppedError
from masksmith.core.files import read_json, write_json
from masksmith.postprocess.operator_rule import OperatorRule
from masksmith.postprocess.scoring import score_rows
from masksmith.project.folder import Project
from masksmith.project.members import read_members
from masksmith.recipes.recipe import load_recipe
from masksmith.steps.out_of_fold import beside_of, predictions_of
from masksmith.steps.predict import oof_of
from masksmith.steps.resolve import resolve
from masksmith.steps.tune import sweep_of
from tests.stops import content

HEAD = {
    "model.image_head": "avg",
    "prediction.image_head": "plane",
    "training.stages.0.epochs": 1,
    "training.stages.0.loss": [
        {"name": "bce", "weight": 1.0, "params": {}},
        {"name": "image_bce", "weight": 1.0, "params": {}},
    ],
}
LIST = [
    {"op": "crf", "weight": [2.0]},
    {"op": "threshold_by", "of": "z", "cut": [400.0], "at": [0.15], "above": [0.2]},
    {"op": "component_area", "frac": [0.002]},
    {"op": "holes", "frac": [0.01]},
    {"op": "gate", "at": [0.0, 0.1]},
]


@pytest.fixture(scope="module")
def listed(example, tmp_path_factory):
    """A project whose net has an image head, tuned by a list of all kinds of operators (read only)."""
    out = tmp_path_factory.mktemp("listed") / "project"
    ms.compete(example / "data", out=out, recipe="smoke", overrides={**HEAD, "tuning.operators": LIST})
    return out


def test_ablation_has_a_row_for_each_operator(listed):
    rows = {row.step: row for row in ms.ablate(listed).steps}
    assert [name for name in rows if name.startswith("operator")] == [f"operator {one['op']}" for one in LIST]
    tuning = ms.tune(listed)
    assert rows["operator gate"].score == pytest.approx(tuning["scores"]["nested"])
    assert rows["operator crf"].low <= rows["operator crf"].high


def test_submit_bundle_and_apply_make_what_tuning_scored(listed, tmp_path):
    tuning = read_json(listed / "tuning.json")
    assert tuning["searched"] == "operators: 3 combinations"  # the plain rule is one
    opened = Project.open(listed)
    members = read_members(opened, None)
    recipe, oof = members[0].scored_by, oof_of(opened, members)
    rows = [row for row in opened.folds.rows if row.id in oof and row.id not in opened.blank_train]
    metric, masks = opened.metric(recipe), opened.cache.train_masks
    rules, sweep = sweep_of(opened, metric, recipe.tuning, lambda: predictions_of(oof, rows))
    rule = rules[-1]
    assert isinstance(rule, OperatorRule)
    assert all(rule.does(one["op"]) for one in LIST)
    found = score_rows(metric, predictions_of(oof, rows), masks, rule, beside_of(opened))
    np.testing.assert_array_equal(np.stack(list(found.values())), sweep.rows_of(rule))
    tuning |= {"rule": asdict(rule), "rule_text": rule.describe()}  # whether it helps or not
    write_json(listed / "tuning.json", tuning)

    ms.submit(listed)
    model = ms.bundle(listed, tmp_path / "m.msk").path
    depths = listed.parent / "depths.csv"
    test = {sample.id: sample.values["z"] for sample in opened.catalog.test}
    depths.write_text("id,z\n" + "".join(f"{name},{z}\n" for name, z in test.items()))
    images = tmp_path / "images"
    images.mkdir()
    for name in test:
        cv2.imwrite(str(images / f"{name}.png"), opened.cache.test_images[name][..., ::-1])
    ms.apply(model, images, tmp_path / "out", table=depths, write=["probs"])
    segmenter = ms.load(model)
    assert segmenter.scalars == ["z"]
    seen = 0
    for name, z in test.items():
        expected = cv2.imread(str(listed / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        applied = cv2.imread(str(tmp_path / "out" / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(applied > 0, expected > 0)
        one = segmenter.segment(opened.cache.test_images[name], scalars={"z": z})
        np.testing.assert_array_equal(one.mask > 0, expected > 0)
        assert one.probs.shape == (*expected.shape[:2], 1)  # without the image head's plane
        seen += int(one.mask.sum())
        assert np.load(tmp_path / "out" / "probs" / f"{name}.npy").shape[2:] in ((), (1,))
    assert seen
    with pytest.raises(InputError, match="no 'z'"):
        segmenter.segment(opened.cache.test_images[name])
    with pytest.raises(InputError, match="--mask: the rule of this model looks at more than pixels"):
        ms.export(model, tmp_path / "m.onnx", format="onnx", mask=True)
    assert json.loads(zipfile.ZipFile(model).read("model.json"))["format"] == 3
    assert ms.report(listed).exists()


def test_a_stopped_search_changes_nothing(project, monkeypatch):
    def stop():
        raise StoppedError("stopped", exit_code=143)

    before = content(project)
    opened = Project.open(project)
    run = read_members(opened, None)[0].run
    text = (run.path / "recipe.yaml").read_text()
    assert "operators: null" in text
    (run.path / "recipe.yaml").write_text(
        text.replace("operators: null", "operators: [{op: threshold}, {op: largest}]")
    )
    monkeypatch.setattr(interrupt, "check_stop", stop)
    with pytest.raises(StoppedError):
        ms.tune(project)
    monkeypatch.undo()
    (run.path / "recipe.yaml").write_text(text)
    assert content(project) == before
    assert ms.tune(project)["searched"] == "top and bottom threshold, pixels"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "tuning.operators=[{op: watershed}]",
            r"tuning.operators\[0\]: 'watershed' is not for binary",
        ),
        (
            "tuning.operators=[{op: threshold}, {op: gate}]",
            r"tuning.operators\[1\]: 'gate' with prediction.image_head 'ignore'; set model.image_head",
        ),
        (
            "tuning.operators=[{op: threshold_by, of: dept, cut: [1.0]}]",
            r"tuning.operators\[0\].of: no column 'dept' of numbers that every image has; expected coverage, z",
        ),
        ("prediction.image_head=plane", "prediction.image_head: 'plane' needs a head"),
    ],
)
def test_lists_are_refused_before_training(trained, override, message):
    with pytest.raises(InputError, match=message):
        resolve(Project.open(trained), load_recipe("smoke", (override,)))


def test_a_gate_needs_the_plane_of_every_member(project):
    run = read_members(Project.open(project), None)[0].run
    text = (run.path / "recipe.yaml").read_text()
    (run.path / "recipe.yaml").write_text(
        text.replace("operators: null", "operators: [{op: threshold}, {op: gate}]")
    )
    with pytest.raises(InputError, match=r"'gate' with prediction.image_head 'ignore'"):
        ms.tune(project)


def test_planes_are_for_masks_alone():
    from masksmith.prediction.config import PredictionConfig, check_plane

    kept = PredictionConfig(image_head="plane")
    with pytest.raises(
        InputError, match=r"prediction.image_head: 'plane' with masks of multiclass; expected masks"
    ):
        check_plane(kept, task="multiclass")
    check_plane(kept, task="multilabel")
    assert (kept.planes(3), PredictionConfig().planes(3)) == (6, 3)
