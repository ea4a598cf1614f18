"""`masksmith explain`: what is said of a name is what its code does."""

import re

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import masksmith as ms
from masksmith.cli import app
from masksmith.core.errors import InputError
from masksmith.losses.build import LOSSES
from masksmith.losses.lovasz_extension import lovasz
from masksmith.metrics import METRICS, get_metric
from masksmith.prediction.tta import TTA
from masksmith.reporting.augmented import INTENSITY, MIXING, patterned
from masksmith.reporting.examples import HITS, UNION, Example, drawn_example, read_example, soft
from masksmith.reporting.explain_texts import NOTES, THEORY
from masksmith.reporting.explained import (
    explain_augmentation,
    explain_loss,
    explain_metric,
    explain_view,
    loss_and_pull,
    special_losses,
    special_scores,
)
from masksmith.reporting.theory import lovasz_rows
from masksmith.steps.explain import names_by_kind


@pytest.fixture(scope="module")
def tiny():
    truth = np.zeros((20, 24), np.uint8)
    truth[4:12, 5:15] = 1
    pred = np.roll(truth, 2, axis=1)
    return Example(np.full((20, 24, 3), 90, np.uint8), truth, pred, soft(pred), "tiny")


def picture(path, array):
    assert cv2.imwrite(str(path), array)
    return path


def test_the_drawn_example_is_that_of_the_metric():
    one = drawn_example()
    assert ((one.truth & one.pred).sum(), (one.truth | one.pred).sum()) == (HITS, UNION) == (872, 1349)
    assert np.array_equal(one.probs > 0.5, one.pred == 1)
    found = ms.explain("tgs_map")
    rows = dict(found.parts[0].rows)
    assert (rows["this prediction"], rows["nothing, where there is nothing"]) == ("0.3000", "1.0000")
    titles = [drawing.title for drawing in found.parts[0].drawings]
    assert "One image's score: IoU 872 / 1349 = 0.6464" in titles
    assert "0.6464" in str(found)
    assert "add --out FILE.html" in str(found)


def test_every_name_is_explained(tiny):
    for name in METRICS:
        assert explain_metric(get_metric(name), tiny).drawings
    for name in LOSSES:
        assert explain_loss(name, tiny).rows
    for name in TTA:
        assert explain_view(name, tiny).drawings
    for name, make in (INTENSITY | MIXING).items():
        assert explain_augmentation(name, make, None, patterned(0)).drawings
    for topic in THEORY.values():
        assert all(draw().svg().startswith("<svg") for draw in topic.draw)
    known = {name for names in names_by_kind().values() for name in names}
    assert set(NOTES) <= known


def test_numbers_are_those_of_the_code(tiny):
    scores = special_scores(get_metric("iou_by_group"), tiny.truth, tiny.pred)
    assert scores["nothing, where there is nothing"] == 0  # as the satellite contests have it
    assert scores["this prediction"] == pytest.approx(64 / 96)
    assert special_losses("bce", tiny.truth)["probability 0.5 everywhere"] == pytest.approx(
        np.log(2), abs=1e-6
    )
    logits = np.random.default_rng(0).normal(size=tiny.truth.shape)
    value, pull = loss_and_pull("bce", logits, tiny.truth)
    np.testing.assert_allclose(pull, (1 / (1 + np.exp(-logits)) - tiny.truth) / pull.size, atol=1e-7)
    assert value > 0
    rows = lovasz_rows(tiny.truth.ravel(), logits.ravel())
    told = sum(max(0.0, error) * growth for _, _, error, growth, _ in rows)
    real = lovasz(torch.tensor(logits, dtype=torch.float32)[None, None], torch.from_numpy(tiny.truth)[None])
    assert told == pytest.approx(float(real), rel=1e-4)
    assert rows[-1][4] == pytest.approx(1)  # all wrong
    alone, other, mean = (float(value) for _, value in explain_view("hflip", tiny).rows)
    assert mean**2 < (alone**2 + other**2) / 2


def test_a_persons_own_image(tmp_path, tiny):
    image = picture(tmp_path / "<b>image.png", np.full((20, 24), 90, np.uint8))
    mask = picture(tmp_path / "mask.png", 255 * tiny.truth)
    probs = picture(tmp_path / "pred.png", np.rint(255 * tiny.probs).astype(np.uint8))
    page = tmp_path / "page.html"
    found = ms.explain("dice_per_image", image=image, mask=mask, pred=probs, out=page)
    counts = "64 right, 16 false, 16 missed, 384 background"
    assert found.parts[0].rows[:2] == (("pixels of this image", counts), ("this prediction", "0.8000"))
    text = page.read_text()
    assert "&lt;b&gt;image.png" in text
    assert "<b>image" not in text
    assert not re.search(r"(src|href)=\"?(http|//)", text)
    assert text.count("<svg") == 3
    ms.explain("hflip", image=image, out=page)  # its own page is replaced
    assert "As a view" in page.read_text()
    assert "As an augmentation" in page.read_text()
    moved = read_example(None, mask, None)
    assert (moved.truth.sum(), moved.pred.sum()) == (80, 80)
    assert "1 pixels down and right" in moved.says
    large = np.zeros((1100, 600), np.uint8)
    large[200:800, 100:400] = 1
    rows = dict(explain_metric(get_metric("iou_pooled"), read_example(None, picture(mask, large), None)).rows)
    assert rows["the curves"] == "of the masks shrunk to 256 pixels"


def test_what_cannot_be_explained(tmp_path, tiny):
    image = picture(tmp_path / "image.png", np.zeros((20, 24), np.uint8))
    mask = picture(tmp_path / "mask.png", np.zeros((24, 20), np.uint8))
    broken, foreign = tmp_path / "broken.png", tmp_path / "notes.html"
    broken.write_bytes(image.read_bytes()[:40])
    foreign.write_text("<p>mine")
    for match, name, files in (
        ("'lovas' is unknown; did you mean 'lovasz'.*\n  metrics: tgs_map, ", "lovas", {}),
        ("explain: dice_per_image: .*no_such|no_such", "dice_per_image(no_such=1)", {}),
        (
            "--image .*none.png: it cannot be read .*\n--mask .*broken.png",
            "bce",
            {"image": "none.png", "mask": broken},
        ),
        ("--image .*: it cannot be read", "hflip", {"image": tmp_path}),
        ("--image 20x24, --mask 24x20 pixels .*one size", "bce", {"image": image, "mask": mask}),
        ("--pred .*compared with nothing; add --mask", "bce", {"pred": mask}),
        ("explain bce: --image alone; .*add --mask", "bce", {"image": image}),
        ("--out .*expected a name that ends in .html", "bce", {"out": tmp_path / "page.png"}),
        ("--out .*it is there, and masksmith explain did not write it", "bce", {"out": foreign}),
    ):
        with pytest.raises(InputError, match=match):
            ms.explain(name, **files)
    assert foreign.read_text() == "<p>mine"


def test_the_command(tmp_path):
    listed = CliRunner().invoke(app, ["explain"]).output
    assert "metrics: tgs_map, " in listed
    assert "theory: unet, " in listed
    done = CliRunner().invoke(app, ["explain", "adam", "--out", str(tmp_path / "adam.html")])
    assert "page: " in done.output
    assert "1 − β2^t" in (tmp_path / "adam.html").read_text()
