"""Encoders of both libraries: names, maps, plain ViTs, weights of whole nets."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from masksmith.core.errors import InputError
from masksmith.models.architectures import divisor_of, vit_patch
from masksmith.models.encoders import (
    check_encoder,
    hub_source,
    normalisation,
    settle_encoder,
    stem_weight,
    timm_name,
)
from masksmith.models.segmentation import build_model
from masksmith.models.vit import SimpleFeaturePyramid, ViTEncoder
from tests.models.nets import TAKE_ENCODERS, config_of, net_of, ramp


def test_plain_vits_are_told_from_their_names(subtests):
    for name, patch in [
        ("vit_small_patch14_dinov2", 14),
        ("tu-vit_small_patch14_dinov2.lvd142m", 14),
        ("samvit_base_patch16", 16),
        ("deit3_small_patch16_224", 16),
        ("eva02_tiny_patch14_224", 14),
        ("flexivit_small", 16),
        ("tu-test_vit2", 16),
        ("vit_base_patch8_224", 8),
        ("resnet18", None),
        ("swin_tiny_patch4_window7_224", None),
        ("beit_base_patch16_224", None),
        ("vit_relpos_small_patch16_224", None),
        ("vit_base_r50_s16_224", None),
        ("auto", None),
    ]:
        with subtests.test(name=name, patch=patch):
            assert vit_patch(name) == patch


def test_divisors_of_vits():
    def of(architecture, encoder, depth):
        return divisor_of(architecture, encoder=encoder, depth=depth, stem="own")

    assert [of("unet", "vit_small_patch14_dinov2", depth) for depth in (3, 4, 5)] == [14, 14, 28]
    assert [of("unet", "test_vit", depth) for depth in (3, 4, 5)] == [16, 16, 32]
    assert of("dpt", "test_vit", 4) == 32
    assert of("dpt", "vit_base_patch8_224", 4) == 32


def learns_on_a_vit(name, depth):
    model = net_of(name, encoder="test_vit", encoder_depth=depth, in_channels=1, scalars=["z"])
    side = model.divisor
    output = model(torch.rand(2, 1, 2 * side, 3 * side), torch.rand(2, 1))
    assert output.mask_logits.shape == (2, 1, 2 * side, 3 * side)
    output.mask_logits.square().mean().backward()
    grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert model.encoder.model.patch_embed.proj.weight.grad.any()


DEEPEST = {"deeplabv3": 3, "emanet": 3, "deeplabv3plus": 4, "pan": 4}  # a plain ViT cannot be dilated
ON_A_VIT = [name for name in TAKE_ENCODERS if name != "dpt"]  # which takes taps


@pytest.mark.slow
def test_a_plain_vit_with_every_decoder(subtests):
    for name in ON_A_VIT:
        with subtests.test(name=name):
            learns_on_a_vit(name, DEEPEST.get(name, 5))


@pytest.mark.slow
def test_a_plain_vit_with_every_decoder_at_other_depths(subtests):
    for name in ON_A_VIT:
        for depth in range(5 if name == "fpn" else 3, DEEPEST.get(name, 5)):
            with subtests.test(name=name, depth=depth):
                learns_on_a_vit(name, depth)


def small_vit(monkeypatch, **options):
    """Make timm build any ViT with two narrow blocks."""
    create = timm.create_model

    def narrow(name, **given):
        return create(name, **given, depth=2, embed_dim=32, num_heads=2, **options)

    monkeypatch.setattr(timm, "create_model", narrow)


@pytest.mark.parametrize(
    "encoder", ["samvit_base_patch16", "vit_small_patch14_dinov2", "vit_base_patch8_224"]
)
@pytest.mark.parametrize("name", ["unet", "unetplusplus", "house_unet", "upernet"])
def test_sam_dino_and_other_patches(monkeypatch, encoder, name):
    small_vit(monkeypatch, **({"global_attn_indexes": (1,)} if encoder.startswith("sam") else {}))
    model = net_of(name, encoder=encoder, encoder_depth=5).eval()
    height, width = 2 * model.divisor, 3 * model.divisor
    with torch.inference_mode():
        maps = model.features(torch.zeros(1, 3, height, width))
        assert model(torch.zeros(1, 3, height, width)).mask_logits.shape == (1, 1, height, width)
    patch = vit_patch(encoder)
    assert [one.shape[-2] * patch / height for one in maps[2:]] == [4, 2, 1, 0.5]


def test_dpt_on_sam(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **given: create(name, **given, depth=4, embed_dim=32, num_heads=2)
    )
    model = net_of("dpt", encoder="samvit_base_patch16").eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 32, 64)).mask_logits.shape == (1, 1, 32, 64)


def test_dpt_is_the_librarys():
    """The class token joined to the patches gives what the library's readout gives."""
    import segmentation_models_pytorch as smp

    ours = net_of("dpt").eval()
    theirs = smp.DPT(
        "tu-test_vit",
        encoder_weights=None,
        decoder_intermediate_channels=(32, 64, 128, 128),
        decoder_fusion_channels=32,
        dynamic_img_size=True,
    ).eval()
    theirs.encoder.model.load_state_dict(ours.encoder.model.state_dict(), strict=False)
    theirs.decoder.load_state_dict(ours.decoder.dpt.state_dict())
    theirs.segmentation_head.head[0].load_state_dict(ours.decoder.smooth[0].state_dict())
    theirs.segmentation_head.head[4].load_state_dict(ours.head.state_dict())
    theirs.segmentation_head.upsampling_factor = 1
    image = ramp(3, 160, 160)
    with torch.inference_mode():
        expected = theirs((image - ours.mean) / ours.std)
        decoded = ours.decoder(ours.features(image))
        torch.testing.assert_close(ours.head(decoded), expected, rtol=1e-4, atol=1e-5)


LIBRARY_MODELS = [
    "Unet",
    "UnetPlusPlus",
    "MAnet",
    "Linknet",
    "FPN",
    "PSPNet",
    "PAN",
    "DeepLabV3",
    "DeepLabV3Plus",
]
LIBRARY_MODELS += ["UPerNet", "Segformer"]


@pytest.mark.slow
def test_decoders_are_the_librarys(subtests):
    """With the weights of ours, the library's model gives the same map before its head."""
    for model_class in LIBRARY_MODELS:
        with subtests.test(model_class=model_class):
            import segmentation_models_pytorch as smp

            name = model_class.lower()
            ours = net_of(name, encoder_depth=5).eval()
            widths = {
                "levels": {"decoder_channels": [16] * 5},
                "linknet": {},
                "fpn": {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32},
                "pspnet": {"psp_out_channels": 32},
                "segformer": {"decoder_segmentation_channels": 32},
            }
            kind = "levels" if name in ("unet", "unetplusplus", "manet") else name
            options = widths.get(kind, {"decoder_channels": 32})
            theirs = getattr(smp, model_class)(
                "tu-test_resnet", encoder_depth=5, encoder_weights=None, **options
            ).eval()
            theirs.encoder.load_state_dict(ours.encoder.state_dict())
            theirs.decoder.load_state_dict(ours.decoder.state_dict())
            image = ramp(3, 128, 128)  # 8x8 at stride 16, below which the library's PAN fails
            with torch.inference_mode():
                features = theirs.encoder((image - ours.mean) / ours.std)
                torch.testing.assert_close(
                    ours.decoder(ours.features(image)), theirs.decoder(features), rtol=1e-4, atol=1e-5
                )


def test_the_pyramid_of_a_vit():
    pyramid = SimpleFeaturePyramid([3, 64], depth=5, width=24)
    maps = pyramid([torch.zeros(1, 3, 64, 96), torch.rand(1, 64, 4, 6)])
    assert [tuple(one.shape[1:]) for one in maps] == [
        (3, 64, 96),
        (0, 32, 48),
        (24, 16, 24),
        (24, 8, 12),
        (24, 4, 6),
        (24, 2, 3),
    ]
    assert pyramid.out_channels == [3, 0, 24, 24, 24, 24]


def test_a_vit_whose_name_lies(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **given: create("test_vit", **given))
    with pytest.raises(InputError, match=r"'vit_small_patch14_dinov2' has patches of 16x16, not of 14"):
        ViTEncoder("vit_small_patch14_dinov2", in_channels=3)


def test_a_vit_that_cannot_follow_the_size(monkeypatch):
    def create(name, **given):
        raise TypeError("no 'dynamic_img_size'")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(InputError, match="'vit_tiny_patch16_224' cannot take images of any size"):
        ViTEncoder("vit_tiny_patch16_224", in_channels=3)


@pytest.mark.parametrize(
    ("encoder", "depth"),
    [
        ("mobilenet_v2", 5),
        ("test_efficientnet", 5),
        ("tu-test_convnext", 5),
        ("swin_tiny_patch4_window7_224", 4),
        pytest.param("vgg11", 5, marks=pytest.mark.slow),
        ("mit_b0", 5),
    ],
)
@pytest.mark.parametrize("name", ["unet", pytest.param("house_unet", marks=pytest.mark.slow)])
def test_other_families_of_encoders(encoder, depth, name):
    model = net_of(name, encoder=encoder, encoder_depth=depth).eval()
    with torch.inference_mode():
        image = torch.rand(1, 3, 2 * model.divisor, 3 * model.divisor)
        assert model(image).mask_logits.shape == (1, 1, *image.shape[-2:])


def test_encoders_that_do_not_fit(subtests):
    for changes, message in [
        (
            {"encoder": "tu-test_convnext2", "encoder_depth": 5, "stem": "stride1"},
            "is not supported by 'tu-test_convnext2'",
        ),
        ({"encoder": "mixer_b16_224"}, "'mixer_b16_224' gives no 4 maps that halve"),
        ({"encoder": "beit_base_patch16_224"}, "'beit_base_patch16_224' gives no 4 maps that halve"),
        ({"encoder": "tu-test_maxvit"}, "'tu-test_maxvit' cannot take images of any size: 32x32 fails"),
    ]:
        with subtests.test(changes=changes, message=message), pytest.raises(InputError, match=message):
            net_of("unet", **changes)


def test_an_encoder_without_a_first_level_and_fpn():
    with pytest.raises(
        InputError, match=r"encoder_depth: 4 gives architecture 'fpn' three maps of 'tu-test_convnext'"
    ):
        net_of("fpn", encoder="tu-test_convnext")


def test_an_encoder_that_cannot_be_dilated():
    with pytest.raises(
        InputError, match=r"'densenet121' cannot be dilated to stride 8, as architecture 'deeplabv3'"
    ):
        net_of("deeplabv3", encoder="densenet121")


def test_names_of_timm_need_no_prefix(subtests):
    for name in ["resnet18.a1_in1k", "tu-resnet18.a1_in1k", "vit_small_patch14_dinov2", "resnet10t"]:
        with subtests.test(name=name):
            check_encoder(name)
            assert timm_name(name) == name.removeprefix("tu-")
            assert hub_source(name).repo_id.startswith("timm/")


def test_unknown_names_are_refused_with_the_nearest(subtests):
    for name, message in [
        ("vit_smal_patch14_dinov2", "did you mean 'vit_small_patch14_dinov2'"),
        ("tu-resnet18.a1_in2k", r"did you mean 'tu-resnet18\.a1_in1k'"),
        ("resnet18.imagnet", r"'resnet18\.imagnet' is unknown; did you mean"),
    ]:
        with subtests.test(name=name), pytest.raises(InputError, match=message):
            check_encoder(name)


def test_both_libraries_know_resnet18():
    assert timm_name("resnet18") is None
    assert timm_name("tu-resnet18") == "resnet18"


def test_pretrained_statistics_are_those_of_the_encoder():
    mean, std = normalisation(3, pretrained=True, encoder="vit_base_patch16_siglip_224")
    assert (mean.flatten().tolist(), std.flatten().tolist()) == ([0.5] * 3, [0.5] * 3)
    mean, _ = normalisation(3, pretrained=True, encoder="resnet18")
    assert mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    mean, std = normalisation(1, pretrained=True, encoder="inceptionv4")
    assert (mean.item(), std.item()) == (0.5, 0.5)
    mean, _ = normalisation(2, pretrained=True, encoder="vit_base_patch16_siglip_224")
    assert mean.flatten().tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("encoder", "channels"),
    [
        *(("test_vit", channels) for channels in (1, 3, 12)),
        *(("tu-test_convnext", channels) for channels in (1, 3, 12)),
        *(("test_efficientnet", channels) for channels in (1, 3, 12)),
        ("tu-test_resnet", 1),
        pytest.param("swin_tiny_patch4_window7_224", 1, marks=pytest.mark.slow),
    ],
)
def test_weights_of_a_whole_net_of_timm_load(tmp_path, encoder, channels):
    name = encoder.removeprefix("tu-")
    torch.manual_seed(3)
    whole = timm.create_model(name, pretrained=False, num_classes=10)
    save_file(
        {key: value.contiguous().clone() for key, value in whole.state_dict().items()},
        tmp_path / "w.safetensors",
    )
    config = config_of("unet", encoder=encoder, encoder_weights=str(tmp_path / "w.safetensors"))
    assert settle_encoder(encoder, config.encoder_weights).encoder == encoder
    model = build_model(config, in_channels=channels, seed=0)
    own = model.encoder.state_dict()
    assert own[stem_weight(model.encoder)].shape[1] == channels
    stored = {
        (tuple(value.shape), round(value.double().sum().item(), 4)) for value in whole.state_dict().values()
    }
    copied = [
        (tuple(value.shape), round(value.double().sum().item(), 4)) in stored
        for key, value in own.items()
        if key != stem_weight(model.encoder)
    ]
    assert all(copied)


def test_a_vit_of_another_width_is_counted(tmp_path):
    whole = timm.create_model("test_vit3", pretrained=False)
    save_file(dict(whole.state_dict()), tmp_path / "w.safetensors")
    config = config_of("unet", encoder="test_vit", encoder_weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(
        InputError, match=r"\d+ of \d+ weights of 'test_vit' do not fit \(first 'model\.blocks\.0"
    ):
        build_model(config, in_channels=3, seed=0)


def test_position_embeddings_follow_the_size(subtests):
    for name in ["unet", "dpt"]:
        with subtests.test(name=name):
            model = net_of(name, encoder="test_vit").eval()
            with torch.inference_mode():
                sizes = [model(torch.zeros(1, 3, side, 64)).mask_logits.shape[-2] for side in (32, 96, 224)]
            assert sizes == [32, 96, 224]


@pytest.mark.slow
def test_the_first_map_of_vgg_joins_our_own_decoders():
    model = net_of("house_unet", encoder="vgg11", encoder_depth=4)
    assert model.features(torch.rand(1, 3, 32, 32))[0].shape == (1, 64, 32, 32)
    last = [one for one in model.decoder.blocks[-1].modules() if isinstance(one, torch.nn.Conv2d)]
    assert last[0].in_channels == 16 + 64
