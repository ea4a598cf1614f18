import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masksmith.core.config import validate
from masksmith.core.errors import InputError
from masksmith.models.segmentation import Output
from masksmith.prediction.combine import build_combine, gate, mask_only, multiply
from masksmith.prediction.config import PredictionConfig, check_combine
from masksmith.prediction.store import to_codes

LOGIT = st.floats(-60, 60, width=32)


def output(mask, image):
    return Output(torch.tensor(mask).reshape(1, 1, 1, -1), torch.tensor([[image]]))


@given(mask=st.lists(LOGIT, min_size=1, max_size=5), image=LOGIT)
def test_multiply_is_the_product_of_the_probabilities(mask, image):
    found = torch.sigmoid(multiply(output(mask, image)).double()).flatten().numpy()
    expected = 1 / (1 + np.exp(-np.array(mask, np.float64))) / (1 + np.exp(-np.float64(image)))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-6)
    assert torch.isfinite(multiply(output(mask, image))).all()


def test_the_gate_is_strict_at_its_threshold():
    edge = float(np.log(0.8 / 0.2))
    for image, threshold, stays in (
        (0.1, 0.5, True),
        (0.0, 0.5, False),
        (-5.0, 0.5, False),
        (edge + 1e-4, 0.8, True),
        (edge - 1e-4, 0.8, False),
    ):
        found = gate(output([3.0, -2.0], image), threshold=threshold)
        assert found.flatten().tolist() == ([3.0, -2.0] if stays else [-30.0, -30.0])
        assert stays or (to_codes(torch.sigmoid(found).numpy()) == 0).all()


def test_each_image_and_class_has_its_own_gate():
    mask = torch.ones(2, 2, 3, 3)
    found = gate(Output(mask, torch.tensor([[1.0, -1.0], [-1.0, 1.0]])), threshold=0.5)
    assert (found[0, 0] == 1).all()
    assert (found[0, 1] == -30).all()
    assert (found[1, 0] == -30).all()
    assert (found[1, 1] == 1).all()


def test_the_choice():
    assert build_combine(PredictionConfig()) is mask_only
    assert build_combine(PredictionConfig(image_head="multiply")) is multiply
    gated = build_combine(PredictionConfig(image_head="gate", image_threshold=0.9))
    assert gated(output([3.0], 2.0)).item() == -30.0  # p = 0.88


def test_what_cannot_be_combined():
    check_combine(PredictionConfig(image_head="gate"), image_head="gem")
    check_combine(PredictionConfig(), image_head="none")
    with pytest.raises(
        InputError, match=r"prediction\.image_head: 'multiply' needs a head .* model\.image_head"
    ):
        check_combine(PredictionConfig(image_head="multiply"), image_head="none")
    with pytest.raises(InputError, match=r"image_threshold: 0\.7 has no effect with image_head 'ignore'"):
        validate(PredictionConfig, {"image_threshold": 0.7}, where="prediction")
