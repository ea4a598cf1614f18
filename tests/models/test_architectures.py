"""Every architecture goes through the same tests, on small encoders."""

import functools
import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from masksmith.core.config import validate
from masksmith.core.errors import InputError
from masksmith.losses.pixelwise import bce
from masksmith.losses.regions import dice
from masksmith.models.architectures import ARCHITECTURES, MAYBE_USELESS
from masksmith.models.config import ModelConfig
from masksmith.models.encoders import stem_weight
from masksmith.models.published import OWN_NETS
from masksmith.models.segmentation import MODELS, build_model, size_trace, to_channels_last
from masksmith.preprocess import Frame, SizeConfig
from tests.models.nets import NAMES, config_of, net_of, ramp, sides_of, still_net

pytestmark = pytest.mark.slow


def test_the_table_without_torch_names_every_model():
    assert set(MODELS) == set(ARCHITECTURES)
    for traits in ARCHITECTURES.values():
        assert traits.describes
        assert traits.source


def test_forward_and_backward(subtests):
    for at, name in enumerate(NAMES):
        with subtests.test(name=name):
            channels = (1, 3, 12)[at % 3]
            model = net_of(name, in_channels=channels, classes=2)
            height, width = sides_of(model)
            output = model(torch.rand(2, channels, height, width))
            assert output.mask_logits.shape == (2, 2, height, width)
            assert output.mask_logits.dtype == torch.float32
            assert output.image_logits is None
            assert output.aux == ()
            output.mask_logits.square().mean().backward()
            grads = {key: weight.grad for key, weight in model.named_parameters()}
            assert all(torch.isfinite(grad).all() for grad in grads.values() if grad is not None)
            assert grads[f"encoder.{stem_weight(model.encoder)}"].any()
            missed = [key for key, grad in grads.items() if grad is None]
            assert all(key.startswith("encoder.model.") for key in missed), missed  # a classifier's norm, say


def test_odd_sizes_by_the_rule_of_padding(subtests):
    image = np.random.default_rng(0).integers(0, 255, (37, 45, 3)).astype(np.uint8)
    for name in NAMES:
        with subtests.test(name=name), torch.inference_mode():
            model = still_net(name)
            frame = Frame.of((37, 45), SizeConfig(), divisor=model.divisor)
            canvas = torch.from_numpy(frame.apply(image)).permute(2, 0, 1)[None] / 255
            probs = torch.sigmoid(model(canvas).mask_logits)[0].permute(1, 2, 0).numpy()
            assert probs.shape[:2] == frame.canvas_hw
            assert frame.undo(probs).shape == (37, 45, 1)


def test_the_divisor_is_the_stride_of_the_deepest_map(subtests):
    for name in NAMES:
        traits = ARCHITECTURES[name]
        for depth in traits.depths if traits.divisor != 1 else ():  # the others: see test_published
            with subtests.test(name=name, depth=depth), torch.inference_mode():
                model = net_of(name, encoder_depth=depth).eval()
                side = 2 * model.divisor
                deepest = model.features(torch.zeros(1, 3, side, side))[-1]
                wide = torch.zeros(1, 3, side, model.divisor)
                assert model(wide).mask_logits.shape == (1, 1, side, model.divisor)
                # the decoder of DPT makes one more level
                assert side // deepest.shape[-1] == (16 if name == "dpt" else model.divisor)
                assert model.divisor == config_of(name, encoder_depth=depth).divisor


def test_saved_and_loaded_it_is_the_same_model_also_with_channels_last_and_nearly_in_bfloat16(
    subtests, tmp_path
):
    image = ramp(3, 64, 96)
    for name in NAMES:
        with subtests.test(name=name), torch.inference_mode():
            expected = still_net(name)(image).mask_logits
            state = {key: value.contiguous() for key, value in still_net(name).state_dict().items()}
            save_file(state, tmp_path / "m.safetensors")
            again = build_model(config_of(name), in_channels=3, seed=1).eval()
            assert not torch.equal(again(image).mask_logits, expected)
            again.load_state_dict(load_file(tmp_path / "m.safetensors"))
            assert torch.equal(again(image).mask_logits, expected)
            inner = image.contiguous(memory_format=torch.channels_last)
            after = to_channels_last(again)(inner).mask_logits
            torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-4)
            with torch.autocast("cpu", torch.bfloat16):
                rough = again(image).mask_logits
            assert rough.dtype == torch.float32
            torch.testing.assert_close(rough, expected, rtol=0.1, atol=0.1 * expected.abs().max().item())


GOLDEN = {
    "albunet": [0.144422, 0.918466, -0.085635, 0.837159],
    "classical_unet": [-0.072688, -0.010627, -0.054969, -0.300430],
    "cloud_unet": [-0.144322, -0.299273, 0.060887, -0.298641],
    "deeplabv3": [0.104677, 0.141510, 0.095716, 0.123864],
    "deeplabv3plus": [0.280900, 0.308827, 0.342566, 0.275654],
    "dpt": [-1.968026, -12.813355, -4.736305, -9.594483],
    "emanet": [0.141273, 0.496074, 0.272304, 0.353768],
    "fastai_unet": [0.655370, 0.085122, 0.167429, 0.437887],
    "fpn": [-8.690107, -0.540154, -2.189860, -1.948142],
    "house_unet": [-0.122742, -0.266782, 0.106782, -0.378292],
    "hyperkernel_unetpp": [0.014937, 0.001168, -0.015858, -0.011053],
    "linknet": [0.033775, 0.017896, 0.037986, 0.037682],
    "linknet_add": [0.028979, 0.071943, 0.000351, 0.016046],
    "linknet_concat": [0.040897, 0.000000, 0.083966, 0.313896],
    "manet": [-0.203807, -0.505850, -0.110300, -0.600764],
    "pan": [0.128499, 0.421954, 0.522264, 0.423089],
    "pspnet": [-0.035263, -0.045831, -0.040811, -0.039579],
    "segformer": [-0.201429, -0.038851, 0.131110, -0.013668],
    "tgs_hyper_unet": [-0.752996, -0.485649, 0.417469, -0.568588],
    "transposed_unet": [0.005268, 0.025166, 0.007767, 0.022362],
    "tgs_baseline_cnn": [0.008854, 0.004466, 0.063055, 0.006483],
    "tgs_depth_unet": [-0.031691, -0.096182, -0.100236, -0.094415],
    "tgs_model1": [-0.002400, -0.006664, 0.027919, -0.002396],
    "tgs_model2": [-0.085935, -0.140593, -0.024242, -0.136840],
    "tiny_diagram_unet": [-0.001387, 0.002413, 0.009951, -0.010543],
    "unet": [-0.007554, 0.539876, 0.011431, 0.509957],
    "unetplusplus": [-0.022836, -0.122418, -0.103736, -0.082696],
    "upernet": [0.090296, 0.081713, 0.106656, 0.148709],
}


def test_golden_logits(subtests):
    """Both libraries are pinned below their next minor version; these numbers say why it matters."""
    assert set(GOLDEN) == set(NAMES)
    for name in NAMES:
        with subtests.test(name=name):
            with torch.inference_mode():
                logits = still_net(name)(ramp(3, 64, 64)).mask_logits[0, 0]
            corners = [logits[at, at].item() for at in (0, 31, 63)]
            assert [*corners, logits.mean().item()] == pytest.approx(GOLDEN[name], rel=2e-3, abs=2e-4)


OTHER_VALUES = {
    "block": "residual",
    "upsample": "bilinear",
    "skip": "add",
    "norm": "group",
    "activation": "elu",
    "stem": "stride1",
    "attention": "scse",
    "center": "conv",
    "hypercolumns": True,
    "deep_supervision": True,
    "output_stride": 16,
}
OWN_ELSEWHERE = {
    ("pan", "upsample"): "nearest",
    ("albunet", "upsample"): "transposed",
    ("pan", "output_stride"): 32,
}
"""Where a value of OTHER_VALUES is the architecture's own."""


@functools.cache
def plain_logits(name, **encoder):
    """What the net with its defaults gives in training mode for two equal images."""
    model = net_of(name, **encoder)
    with torch.no_grad():
        return model(ramp(3, *sides_of(model)).expand(2, -1, -1, -1)).mask_logits


def test_an_option_is_obeyed_or_refused(subtests):
    """A useful option changes the model or its logits; a useless one is refused by name."""
    for name, field in itertools.product(NAMES, MAYBE_USELESS):
        value = OWN_ELSEWHERE.get((name, field), OTHER_VALUES[field])
        options = ARCHITECTURES[name].options
        with subtests.test(name=name, field=field):
            if field not in options and f"{field}:{value}" not in options:
                message = f"{field}: {value!r} is not supported by architecture {name!r}"
                with pytest.raises(ValueError, match=message):
                    config_of(name, **{field: value})
                continue
            encoder = {"encoder": "resnet18"} if field == "stem" and name != "dpt" else {}
            if name == "pan" and field == "output_stride":
                encoder = {"encoder_depth": 5}
            same = plain_logits(name, **encoder)
            model = net_of(name, **encoder, **{field: value})
            with torch.no_grad():
                changed = model(ramp(3, *same.shape[-2:]).expand(2, -1, -1, -1))
            assert changed.mask_logits.shape == same.shape
            if field == "deep_supervision":
                assert len(changed.aux) >= 2
            else:
                assert not torch.allclose(changed.mask_logits, same)


def test_what_does_not_fit_is_refused_when_it_is_read(subtests):
    for name, changes, message in [
        ("unett", {}, "'unett' is unknown; did you mean 'unet'"),
        ("unet", {"decoder_channels": [8]}, "decoder_channels: 1 values for encoder_depth 4"),
        ("fpn", {"decoder_channels": [64, 32]}, r"2 values, but architecture 'fpn' has one width; .* \[64\]"),
        ("pan", {"decoder_channels": []}, "0 values, but architecture 'pan' has one width"),
        ("fpn", {"decoder_channels": [48]}, "48 does not fit architecture 'fpn', .* multiple of 32"),
        (
            "unet",
            {"attention": "scse", "decoder_channels": [32, 16, 16, 8]},
            "8 is too few for attention 'scse'",
        ),
        (
            "dpt",
            {"encoder_depth": 3, "decoder_channels": [32]},
            "encoder_depth: 3 does not fit architecture 'dpt'",
        ),
        (
            "dpt",
            {"encoder": "resnet18", "decoder_channels": [32]},
            "'resnet18' does not fit architecture 'dpt'",
        ),
        (
            "dpt",
            {"encoder": "vit_small_patch14_dinov2", "decoder_channels": [32]},
            "'vit_small_patch14_dinov2' does",
        ),
        (
            "unet",
            {"encoder": "test_vit", "stem": "stride1"},
            "stem: 'stride1' is not supported by 'test_vit'",
        ),
        (
            "unet",
            {"encoder": "test_vit", "encoder_taps": "expanded"},
            "'expanded' is not supported by 'test_vit'",
        ),
        (
            "unet",
            {"encoder": "test_vit", "encoder_attention": "scse_inside"},
            "'scse_inside' is not supported by 'test_vit'",
        ),
        (
            "unet",
            {"encoder": "test_vit", "encoder_norm": "group"},
            "encoder_norm: 'group' is not supported by 'test_vit'",
        ),
        (
            "deeplabv3",
            {"encoder": "test_vit", "decoder_channels": [32]},
            "encoder_depth: 4 does not fit .* on 'test_vit', which cannot be dilated; expected 3",
        ),
        (
            "fpn",
            {"upsample": "transposed", "decoder_channels": [32]},
            "upsample: 'transposed' is not supported .* house_",
        ),
        (
            "linknet",
            {"stem": "stride1", "decoder_channels": [32]},
            "stem: 'stride1' is not supported .* choose unet or",
        ),
        ("unet", {"scalars": ["z", "z"]}, "scalars: 'z' is named twice"),
    ]:
        with subtests.test(name=name):
            values = {"architecture": name, "encoder_weights": "none"} | changes
            with pytest.raises(ValueError, match=message):
                ModelConfig(**values)
            with pytest.raises(InputError, match=message):
                validate(ModelConfig, values, where="recipe r")


def test_the_trace_ends_at_the_size_of_the_image_and_scalars_change_the_logits(subtests):
    for name in NAMES:
        with subtests.test(name=name):
            model = net_of(name, scalars=["z", "year"])
            assert (model.takes_scalars, model.num_scalars) == (True, 2)
            trace = size_trace(model, in_channels=3, hw=(64, 96))
            assert (trace[0].channels, trace[0].hw) == (3, (64, 96))
            assert (trace[-1].channels, trace[-1].hw) == (1, (64, 96))
            blocks = [line.block for line in trace]
            # the first map of a net with an encoder of its own counts
            maps = {"tgs_baseline_cnn": 1}.get(name, 5 if name in OWN_NETS else 4)
            assert sum(block.startswith("encoder") for block in blocks) == maps
            assert sum(block.startswith("decoder") for block in blocks) >= min(maps, 2)
            assert model.training
            image = ramp(3, *sides_of(model)).expand(2, -1, -1, -1)
            with torch.no_grad():
                output = model.eval()(image, torch.tensor([[0.0, 0.0], [3.0, -3.0]])).mask_logits
            assert not torch.allclose(output[0], output[1])


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_overfits_eight_images(name):
    # of 32 pixels these keep 2x2 or 4x4 otherwise, which cannot show where an object ends
    finer = (
        {"encoder_depth": 3, "stem": "stride1"} if name in ("pspnet", "deeplabv3", "pan", "emanet") else {}
    )
    model = net_of(name, in_channels=1, **finer)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(8, 1, 32, 32, generator=generator)
    target = torch.zeros(8, 32, 32, dtype=torch.uint8)
    for at in range(8):
        target[at, 4 : 12 + at, 6 : 14 + at] = 1
    image[target[:, None] == 1] *= 0.3
    torch.manual_seed(0)  # dropout of the library's decoders
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(200):
        logits = model(image).mask_logits
        (bce(logits, target) + dice(logits, target)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9 and _iou(model, image, target) > 0.95:
            break
    assert _iou(model, image, target) > 0.95


def _iou(model, image, target):
    """Pooled IoU by the statistics of the batch, which eight images suffice for, without dropout."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    with torch.no_grad():
        found = model(image).mask_logits[:, 0] > 0
    model.train()
    truth = target == 1
    return ((found & truth).sum() / (found | truth).sum()).item()
