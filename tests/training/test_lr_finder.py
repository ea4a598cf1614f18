import copy
import math

import numpy as np
import pytest
import torch

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.steps.lr_test import LrFound
from masksmith.training import OptimizerConfig
from masksmith.training.lr_finder import LrCurve, find_lr, steepest
from masksmith.training.machine import make_fabric
from tests.blends import write_pupil, write_recipe
from tests.training.tiny import TinyNet, config, make_data, same, stage

pytestmark = pytest.mark.slow


def sweep(data, *, model=None, settings=None, **options):
    settings = settings or config(stage(optimizer=OptimizerConfig(name="sgd", lr=0.5)), clip_norm=None)
    return find_lr(make_fabric(settings), model or TinyNet(), settings, data, **options)


def test_a_sweep_is_exponential_and_leaves_everything_as_it_was(tmp_path):
    data, model = make_data(tmp_path), TinyNet()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    curve = sweep(data, model=model, lowest=1e-4, highest=1.0, steps=41)
    assert torch.equal(torch.rand(2), expected)
    same(before, model.state_dict())
    assert curve.rates[0] == pytest.approx(1e-4)
    assert np.diff(np.log10(curve.rates)) == pytest.approx([0.1] * (len(curve.rates) - 1))
    assert len(curve.losses) == len(curve.rates)
    assert curve == sweep(data, lowest=1e-4, highest=1.0, steps=41)  # the same again


def test_it_suggests_a_rate_that_learns(tmp_path):
    curve = sweep(make_data(tmp_path), lowest=1e-4, highest=10.0, steps=60)
    assert curve.suggestion is not None
    assert 1e-3 < curve.suggestion < 5
    at = curve.rates.index(curve.suggestion)
    assert min(curve.losses[at:]) < curve.losses[10]


def test_it_stops_where_the_loss_diverges(tmp_path):
    curve = sweep(make_data(tmp_path), lowest=1.0, highest=1e12, steps=40)
    assert len(curve.losses) < 40
    assert all(math.isfinite(loss) for loss in curve.losses)


def test_the_steepest_fall_before_the_lowest_loss():
    rates = list(np.geomspace(1e-4, 1, 41))
    falls = [1.0 - 1 / (1 + math.exp(-(at - 20))) for at in range(35)] + [
        2.0
    ] * 6  # a step down at 20, then up
    assert steepest(rates, falls) == rates[20]
    assert steepest(rates, list(np.linspace(1, 2, 41))) is None
    assert steepest([], []) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 1.0, "highest": 0.1}, r"lowest 1.0 and highest 0.1: expected 0 < lowest < highest"),
        ({"steps": 5}, r"steps: 5; expected 20 or more"),
    ],
)
def test_sweeps_that_show_nothing(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        sweep(make_data(tmp_path), **options)


def test_what_is_said_of_a_curve(tmp_path):
    found = str(LrFound(LrCurve([1e-6, 0.5], [1.0, 0.9], 0.01), 0.003, tmp_path / "lr.html"))
    assert (
        found
        == f"suggested learning rate: 0.01 (the recipe has 0.003; swept 1e-06 to 0.5)\n{tmp_path}/lr.html"
    )
    assert "no suggestion" in str(LrFound(LrCurve([1e-6, 0.5], [1.0, 1.9], None), 0.003, tmp_path))


def test_later_stages_on_pseudo_labels_do_not_matter(project, tmp_path):
    changes = {"training.stages.0.scale": 0.2}
    plain = write_recipe(tmp_path, "plain", **changes)
    pupil = write_pupil(tmp_path, "pupil", plain, data=("labelled", "both", "pseudo"), changes=changes)
    curves = [ms.lr(project, recipe=recipe).curve for recipe in (plain, pupil)]
    assert curves[0] == curves[1]


def test_the_verb_writes_an_offline_page_and_makes_no_run(project):
    runs = sorted(project.glob("runs/*"))
    found = ms.lr(project, recipe="smoke", overrides={"training.stages.0.scale": 0.2})
    page = found.page.read_text()
    assert found.page == project / "lr.html"
    assert "learning-rate range test" in page
    assert 'src="http' not in page
    assert found.peak == 0.01
    assert sorted(project.glob("runs/*")) == runs
    with pytest.raises(
        InputError, match=r"training.start_run: x-1: a range test begins with the model's own"
    ):
        ms.lr(project, recipe="smoke", overrides={"training.start_run": "x-1"})
