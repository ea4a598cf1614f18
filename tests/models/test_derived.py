import warnings

import numpy as np
import pytest
import torch

from masksmith.core.errors import InputError
from masksmith.models.config import ModelConfig
from masksmith.models.derived import DERIVED, DERIVED_COUNT, cumulative_sum, depth_ramp
from masksmith.models.segmentation import build_model, size_trace
from masksmith.prediction.runtimes import import_openvino, openvino_core
from masksmith.recipes.recipe import load_recipe
from masksmith.training.footprint import prediction_footprint, training_footprint

pytestmark = pytest.mark.slow


def small(kind, **changes):
    values = {"encoder": "resnet18", "encoder_weights": "none", "encoder_depth": 3} | changes
    return ModelConfig(decoder_channels=[16, 8, 8], derived_channels=kind, **values)


def net(kind, **changes):
    return build_model(small(kind, **changes), in_channels=1, seed=0).eval()


def grey(height, width, *, batch=2):
    return torch.from_numpy(np.random.default_rng(0).random((batch, 1, height, width), np.float32))


def test_the_ramp_of_the_salt_winner(subtests):
    for hw in [(128, 128), (24, 40), (2, 3)]:
        with subtests.test(hw=hw):
            image = grey(*hw)
            found = depth_ramp(image).numpy()
            for b in range(2):
                for row, depth in enumerate(np.linspace(0, 1, hw[0])):
                    np.testing.assert_array_equal(found[b, 0, row], image[b, 0, row])
                    np.testing.assert_allclose(found[b, 1, row], depth, atol=1e-6)
                    np.testing.assert_allclose(found[b, 2, row], image[b, 0, row] * depth, atol=1e-6)


def test_the_ramp_of_one_row():
    assert torch.equal(
        depth_ramp(torch.ones(1, 1, 1, 4))[0, :, 0], torch.tensor([[1.0] * 4, [0.0] * 4, [0.0] * 4])
    )


def test_the_cumulative_sum_of_the_depth_kernel(subtests):
    for hw in [(128, 128), (24, 40), (11, 11)]:
        with subtests.test(hw=hw):
            image = grey(*hw)
            found = cumulative_sum(image).numpy()
            for b in range(2):
                plane = image[b, 0].numpy().astype(np.float64)
                total = np.cumsum(plane - plane[5:-5, 5:-5].mean(), axis=0)
                total -= total[5:-5, 5:-5].mean()
                total /= max(1e-3, total[5:-5, 5:-5].std())
                np.testing.assert_array_equal(found[b, 0], image[b, 0])
                np.testing.assert_allclose(found[b, 1], total, rtol=1e-3, atol=1e-3)


def test_the_cumulative_sum_of_an_even_image_is_nothing():
    assert cumulative_sum(torch.full((1, 1, 16, 16), 0.5))[0, 1].abs().max() < 0.01


def test_a_canvas_within_the_border():
    with pytest.raises(
        ValueError, match=r"'cumulative_sum' of a canvas of 10x64: .* at least 11 pixels a side"
    ):
        cumulative_sum(torch.zeros(1, 1, 10, 64))


def test_the_encoder_sees_them_and_the_model_takes_one_channel(subtests):
    for kind in sorted(DERIVED):
        with subtests.test(kind=kind):
            model = net(kind)
            count = DERIVED_COUNT[kind]
            assert model.in_channels == 1
            assert model.encoder.conv1.in_channels == model.mean.shape[1] == count
            image = grey(32, 48)
            with torch.no_grad():
                planes = model.features(image)[0]
                torch.testing.assert_close(planes * model.std + model.mean, DERIVED[kind](image))
                upside_down = model(image.flip(2)).mask_logits.flip(2)
                assert not torch.allclose(model(image).mask_logits, upside_down)


def test_trace_and_memory_count_the_channel_of_the_image(subtests):
    for kind in sorted(DERIVED):
        with subtests.test(kind=kind):
            model = net(kind)
            trace = size_trace(model, in_channels=1, hw=(32, 48))
            assert (trace[0].block, trace[0].channels) == ("input", 1)
            assert [line.block for line in trace if line.block.startswith("encoder")] == [
                f"encoder {i}" for i in (1, 2, 3)
            ]
            config = load_recipe().training
            plain = build_model(small("none"), in_channels=1, seed=0)
            for footprint in (training_footprint, prediction_footprint):
                found, known = (footprint(one, config).bytes_at((64, 64), 4) for one in (model, plain))
                assert 0.9 * known < found < 1.5 * known


def test_with_pretrained_weights_they_are_normalised_as_rgb(tmp_path):
    from safetensors.torch import save_file

    rgb = build_model(ModelConfig(encoder="resnet18", encoder_weights="none"), in_channels=3, seed=5)
    save_file(rgb.encoder.state_dict(), tmp_path / "w.safetensors")
    model = net("depth_ramp", encoder_weights=str(tmp_path / "w.safetensors"))
    assert torch.equal(model.encoder.conv1.weight, rgb.encoder.conv1.weight), (
        "three channels, nothing to adapt"
    )
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


def test_weights_travel(tmp_path):
    model, other = net("depth_ramp"), build_model(small("depth_ramp"), in_channels=1, seed=1).eval()
    other.load_state_dict(model.state_dict())
    image = grey(32, 32)
    with torch.no_grad():
        assert torch.equal(model(image).mask_logits, other(image).mask_logits)


@pytest.mark.parametrize("kind", sorted(DERIVED))
def test_a_traced_net_serves_other_heights(kind):
    pytest.importorskip("openvino")
    openvino = import_openvino()

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = net(kind)

        def forward(self, image):
            return self.model(image).mask_logits

    logits, image = Logits().eval(), grey(40, 24)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = openvino.convert_model(logits, example_input=grey(16, 16), input=[-1, 1, -1, -1])
        expected = logits(image)
    traced.reshape([2, 1, 40, 24])
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    found = openvino_core(openvino).compile_model(traced, "CPU", options)(image.numpy())[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-3)


def test_images_of_more_channels_are_refused(subtests):
    for channels in [2, 3]:
        with (
            subtests.test(channels=channels),
            pytest.raises(
                InputError, match=f"'depth_ramp' is made of a single channel, .* these images have {channels}"
            ),
        ):
            build_model(small("depth_ramp"), in_channels=channels, seed=0)


def test_a_recipe_that_moves_rows_is_refused(subtests):
    for override, message in [
        (
            "prediction.tta=[identity, vflip]",
            "prediction.tta: 'vflip' moves rows, .* 'depth_ramp' tells the model",
        ),
        ("prediction.tta=[rot90]", "prediction.tta: 'rot90' moves rows"),
        ("prediction.tta_shifts=[[0, 4], [2, 0]]", r"prediction.tta_shifts: \[2, 0\] moves rows"),
        ("training.crop_hw=[48, 64]", "training.crop_hw: in windows of 48x64 a row lies elsewhere"),
    ]:
        with subtests.test(override=override):
            derived = "model.derived_channels=depth_ramp"
            assert load_recipe(overrides=(derived, "prediction.tta=[hflip]"))
            assert load_recipe(overrides=(override,))
            assert load_recipe(
                overrides=(derived, "prediction.tta=[hflip]", "prediction.tta_shifts=[[0, 4]]")
            )
            with pytest.raises(InputError, match=message):
                load_recipe(overrides=(derived, "prediction.tta=[hflip]", override))
