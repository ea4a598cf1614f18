"""The encoders that the sources name, each as the encoder of a U-Net: maps, a step, weights of files, names."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from masksmith.core.errors import InputError
from masksmith.models.config import ModelConfig
from masksmith.models.encoders import check_encoder, known_encoders, normalisation
from masksmith.models.inception import InceptionV3
from masksmith.models.segmentation import build_model
from masksmith.recipes.recipe import load_recipe
from masksmith.recipes.vocabulary import read_vocabulary
from tests.models.nets import net_of

SMALL = ["inception_v3", "densenet121", "dpn68", "xception"]
LARGE = ["inceptionv4", "inceptionresnetv2", "resnet152", "senet154", "dpn98", "nasnetalarge"]
NAMED = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


@pytest.mark.parametrize("encoder", NAMED)
def test_a_step_reaches_every_convolution(encoder):
    model = net_of("unet", encoder=encoder, encoder_depth=5, in_channels=1)
    layers = convolutions(model.encoder)
    image = torch.rand(2, 1, 32, 64)
    logits = model(image).mask_logits
    assert logits.shape == (2, 1, 32, 64)
    logits.square().mean().backward()
    assert all(torch.isfinite(layer.weight.grad).all() and layer.weight.grad.any() for layer in layers)
    first = layers[0].weight.detach().clone()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(layers[0].weight, first)


def convolutions(encoder):
    return [one for one in encoder.modules() if isinstance(one, nn.Conv2d)]


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_the_maps_of_inception_v3_halve(depth):
    encoder = InceptionV3("inception_v3", in_channels=2, depth=depth).eval()
    with torch.inference_mode():
        maps = encoder(torch.zeros(1, 2, 64, 96))
    widths = [2, 64, 192, 288, 768, 2048][: depth + 1]
    assert encoder.out_channels == widths
    assert [tuple(one.shape[1:]) for one in maps] == [
        (width, 64 >> level, 96 >> level) for level, width in enumerate(widths)
    ]


def test_inside_its_border_inception_v3_computes_what_timm_does():
    """Far from the borders padding changes nothing; the deeper maps see the borders everywhere."""
    theirs = timm.create_model("inception_v3", features_only=True, out_indices=(0, 1, 2)).eval()
    ours = InceptionV3("inception_v3", in_channels=3, depth=3).eval()
    stored = theirs.state_dict()
    ours.load_state_dict({name: stored[name.removeprefix("model.")] for name in ours.state_dict()})
    image = torch.full((1, 3, 192, 192), 0.7)
    with torch.inference_mode():
        for mine, other in zip(ours(image)[1:], theirs(image), strict=True):
            middles = [one[:, :, one.shape[2] // 2, one.shape[3] // 2] for one in (mine, other)]
            torch.testing.assert_close(*middles, rtol=1e-4, atol=1e-5)


PAIRS = [
    ("inception_v3", "inception_v3"),
    ("densenet121", "densenet121"),
    ("dpn68", "dpn68"),
    pytest.param("inceptionv4", "inception_v4", marks=pytest.mark.slow),
    pytest.param("inceptionresnetv2", "inception_resnet_v2", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("encoder", "theirs"), PAIRS)
def test_a_file_of_timms_whole_net_loads(tmp_path, encoder, theirs):
    """The classifier is left out, and every other tensor is taken; another net's file is refused with a count."""
    stored = timm.create_model(theirs).state_dict()
    save_file(stored, tmp_path / "w.safetensors")
    config = ModelConfig(encoder=encoder, encoder_weights=str(tmp_path / "w.safetensors"))
    model = build_model(config, in_channels=3, seed=0)
    values = {value.sum().item() for value in stored.values() if value.ndim == 4}
    loaded = [one.weight.sum().item() for one in convolutions(model.encoder)]
    assert set(loaded) <= values
    other = ModelConfig(encoder="resnet18", encoder_weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(InputError, match=r"w\.safetensors: \d+ of \d+ weights of 'resnet18' do not fit"):
        build_model(other, in_channels=3, seed=0)


def test_a_recipe_names_them_and_the_vocabulary_describes_them():
    listed = {option.name: option.description for option in read_vocabulary("encoders").options["encoders"]}
    assert list(listed) == known_encoders()
    for name in [*SMALL, *LARGE]:
        assert "https://arxiv.org/abs/" in listed[name], name
        recipe = load_recipe("smoke", (f"model.encoder={name}", "model.encoder_weights=none"))
        assert recipe.model.encoder == name
        check_encoder(name)


def test_names_that_are_nearly_theirs(subtests):
    for name, meant in [
        ("inception-v3", "inception_v3"),
        ("inceptionv5", "inceptionv4"),
        ("inceptionresnet2", "inceptionresnetv2"),
        ("senet145", "senet154"),
        ("densnet121", "densenet121"),
        ("dpn91", "dpn92"),
        ("inception_v3.tf_in2k", "inception_v3.tf_in1k"),
    ]:
        with (
            subtests.test(name=name),
            pytest.raises(InputError, match=rf"{name}' is unknown; did you mean .*'{meant}'"),
        ):
            check_encoder(name)


def test_what_they_cannot(subtests):
    for encoder, architecture, message in [
        (
            "inception_v4",
            "unet",
            "'inception_v4' cannot take images of any size.*choose 'inceptionv4', the same net",
        ),
        ("tu-inception_resnet_v2", "unet", "choose 'inceptionresnetv2', the same net with padding"),
        (
            "inception_v3",
            "deeplabv3",
            "'inception_v3' cannot be dilated to stride 8.*its poolings cannot be dilated",
        ),
    ]:
        with subtests.test(encoder=encoder), pytest.raises(InputError, match=message):
            net_of(architecture, encoder=encoder)


def test_what_their_weights_were_trained_with():
    assert normalisation(3, pretrained=True, encoder="dpn68")[0][0, 0].item() == pytest.approx(124 / 255)
    for encoder in ("inception_v3", "inceptionv4", "inceptionresnetv2"):
        assert normalisation(3, pretrained=True, encoder=encoder)[1].flatten().tolist() == [0.5] * 3
