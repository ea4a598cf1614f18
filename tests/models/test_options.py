"""What stands around encoder and decoder: heads, scalars, stems, normalisation, attention, checkpointing."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from masksmith.core.errors import InputError
from masksmith.models.architectures import ARCHITECTURES
from masksmith.models.backbones import replace_stem
from masksmith.models.cpu import quicken_depthwise
from masksmith.models.encoders import adapt_stem, read_weights, stem_weight
from masksmith.models.heads import GeMPool, ScalarJoin
from masksmith.models.layers import SCSE
from masksmith.models.library import AnySizeFPA
from masksmith.models.norms import replace_batch_norm
from masksmith.models.segmentation import build_model
from tests.models.nets import NAMES, TAKE_ENCODERS, config_of, net_of, ramp, sides_of, still_net


def kinds(module):
    return {type(one) for one in module.modules()}


def test_image_head(subtests):
    for pooling in ["avg", "max", "gem"]:
        with subtests.test(pooling=pooling):
            model = net_of("unet", image_head=pooling, classes=2).eval()
            image = torch.rand(3, 3, 32, 48)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                output = model(image)
            assert model.has_image_head
            assert output.image_logits.shape == (3, 2)
            assert output.image_logits.dtype == torch.float32
            deepest = model.features(image)[-1].detach()
            pooled = {
                "avg": deepest.mean((2, 3)),
                "max": deepest.flatten(2).max(-1).values,
                "gem": (deepest.clamp(min=1e-6) ** 3).mean((2, 3)) ** (1 / 3),
            }[pooling]
            linear = model.image_head[1]
            with torch.no_grad():
                expected = pooled @ linear.weight.T + linear.bias
                torch.testing.assert_close(model(image).image_logits, expected, rtol=1e-4, atol=1e-5)
            assert not net_of("unet").has_image_head


def test_gem_lies_between_mean_and_maximum_and_learns_its_power():
    features = torch.rand(2, 4, 5, 6)
    pool = GeMPool()
    pooled = pool(features)
    assert (pooled > features.mean((2, 3))).all()
    assert (pooled < features.amax((2, 3))).all()
    pooled.sum().backward()
    assert pool.power.grad.abs() > 0
    with torch.no_grad():
        pool.power.fill_(1.0)
    torch.testing.assert_close(pool(features), features.mean((2, 3)))
    assert torch.isfinite(pool(-features)).all()


def test_scalars_are_standardised_by_what_is_saved_with_the_weights(tmp_path):
    values = np.array([[100.0, 2000], [300, 2010], [500, 2020]], np.float32)
    model = net_of("unet", scalars=["z", "year"]).eval()
    plain = copy.deepcopy(model)
    model.set_scalar_statistics(values)
    image = torch.rand(3, 3, 32, 32)
    standard = (values - values.mean(0)) / values.std(0)
    with torch.no_grad():
        expected = plain(image, torch.from_numpy(standard)).mask_logits
        torch.testing.assert_close(model(image, torch.from_numpy(values)).mask_logits, expected)
    again = net_of("unet", scalars=["z", "year"])
    again.load_state_dict(model.state_dict())
    assert again.scalar_join.scalar_mean.tolist() == [300, 2010]


def test_the_scalar_join_passes_the_map_through_at_first():
    join = ScalarJoin(["z"], 4)
    features = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(join(features, torch.zeros(2, 1)), features)
    assert not torch.allclose(join(features, torch.ones(2, 1)), features)


def test_scalars_that_do_not_fit():
    image, model = torch.rand(2, 3, 32, 32), net_of("unet", scalars=["z", "year"])
    with pytest.raises(
        ValueError, match=r"scalars of shape none: this model takes \(2, 2\) with images \(2, 3, 32"
    ):
        model(image)
    with pytest.raises(ValueError, match=r"scalars of shape \(2, 1\): this model takes \(2, 2\)"):
        model(image, torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"scalars of shape \(2, 2\): this model takes none"):
        net_of("unet")(image, torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"scalars of shape \(3, 2\): this model takes none"):
        net_of("unet").set_scalar_statistics(np.zeros((3, 2)))
    for values, message in [
        (np.zeros((3, 1)), r"numbers of shape \(3, 1\); expected \(images, 2\) for the columns z, year"),
        (np.array([[1.0, 5.0], [2.0, 5.0]]), r"'year' is 5\.0 everywhere"),
        (np.array([[1.0, 5.0], [np.nan, 6.0]]), r"'z' is nan in row 1"),
    ]:
        with pytest.raises(InputError, match=message):
            model.set_scalar_statistics(values)


def test_deep_supervision_speaks_in_training_alone(subtests):
    for name in ["unet", "unetplusplus", "manet", "linknet", "house_unet"]:
        with subtests.test(name=name):
            model = net_of(name, deep_supervision=True, classes=3)
            image = torch.rand(2, 3, 32, 48)
            output = model(image)
            sizes = [one.shape[-2] for one in output.aux]
            assert len(sizes) >= 3
            assert sizes == sorted(sizes)
            assert {one.shape[:2] for one in output.aux} == {(2, 3)}
            sum(one.square().mean() for one in output.aux).backward()
            assert all(head.weight.grad.any() for head in model.aux_heads)
            assert model.eval()(image).aux == ()
            names = [key for key, _ in model.named_parameters()]
            assert len(names) == len(set(names))


def test_deep_supervision_of_a_checkpointed_copy():
    model = net_of("unet", deep_supervision=True)
    saving = copy.deepcopy(net_of("unet", deep_supervision=True, gradient_checkpointing=True))
    image = torch.rand(2, 3, 32, 48)
    for one, two in zip(model(image).aux, saving(image).aux, strict=True):
        torch.testing.assert_close(one, two)
    sum(one.mean() for one in saving(image).aux).backward()
    assert stem_weight(saving.encoder) in [
        name for name, weight in saving.encoder.named_parameters() if weight.grad is not None
    ]


def test_without_dropout_nothing_is_drawn():
    model = net_of("unet")
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    image = ramp(3, 32, 32).expand(2, -1, -1, -1)
    model(image)
    assert torch.rand(1) == expected


def test_dropout_drops_channels_before_the_head():
    model = net_of("unet", dropout=0.5)
    image = torch.rand(2, 3, 32, 32)
    torch.manual_seed(0)
    with torch.no_grad():
        assert not torch.equal(model(image).mask_logits, model(image).mask_logits)
        model.eval()
        assert torch.equal(model(image).mask_logits, model(image).mask_logits)


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize(
    "name", [name for name in TAKE_ENCODERS if name != "fpn"]
)  # it has group norm of its own
def test_no_batch_norm_is_left_in_the_decoder(name, norm):
    model = net_of(name, norm=norm)
    assert not kinds(model.decoder) & {nn.BatchNorm2d}
    assert any(isinstance(one, nn.GroupNorm) for one in model.decoder.modules()) == (norm == "group")
    image = torch.rand(2, 3, *sides_of(model))
    if norm == "none":
        return
    model.decoder.train()
    model.encoder.eval()
    torch.manual_seed(0)
    both = model.eval()(image).mask_logits
    one = model(image[:1]).mask_logits
    torch.testing.assert_close(both[:1], one, rtol=1e-3, atol=1e-4)  # no image looks at another


def test_without_norm_the_convolution_before_it_gets_a_bias():
    block = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    separable = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1, bias=False)), nn.BatchNorm2d(4))
    net = nn.ModuleList([block, separable])
    assert replace_batch_norm(net, "none") == 2
    assert block[0].bias.tolist() == [0] * 6
    assert separable[0][0].bias.tolist() == [0] * 4
    assert isinstance(block[1], nn.Identity)


def test_group_norm_after_a_global_pool_is_not_zero():
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32))
    plain = nn.Sequential(nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32))
    replace_batch_norm(pooled, "group")
    replace_batch_norm(plain, "group")
    assert pooled[2].num_groups == 1 < plain[1].num_groups
    assert pooled(torch.rand(2, 8, 3, 3)).abs().max() > 0.1


def test_group_norm_in_the_encoder_keeps_scale_and_activation(subtests):
    for encoder in ["resnet18", "tu-test_resnet", "tu-test_efficientnet"]:
        with subtests.test(encoder=encoder):
            model = net_of("unet", encoder=encoder, encoder_norm="group").eval()
            assert not [one for one in model.encoder.modules() if isinstance(one, nn.BatchNorm2d)]
            norms = [one for one in model.encoder.modules() if isinstance(one, nn.GroupNorm)]
            assert norms
            assert all(one.num_groups <= 32 and one.num_channels % one.num_groups == 0 for one in norms)
            image = torch.rand(2, 3, 32, 32)
            with torch.no_grad():
                torch.testing.assert_close(
                    model(image).mask_logits[:1], model(image[:1]).mask_logits, rtol=1e-3, atol=1e-4
                )
            plain = net_of("unet", encoder=encoder)
            acts = [
                type(one.act)
                for one in plain.encoder.modules()
                if hasattr(one, "act") and hasattr(one, "drop")
            ]
            kept = [type(one.act) for one in norms if hasattr(one, "act")]
            assert kept == [one for one in acts if one is not None][: len(kept)]


def test_group_norm_is_refused_where_there_is_no_batch_norm():
    with pytest.raises(
        InputError, match="encoder_norm: 'group' is not supported by 'tu-test_convnext', which has no batch"
    ):
        net_of("unet", encoder="tu-test_convnext", encoder_norm="group", encoder_depth=4)


def test_attention_on_each_encoder_map(subtests):
    for name in ["unet", "unetplusplus", "fpn", "dpt", "house_unet"]:
        with subtests.test(name=name):
            model = net_of(name, encoder_attention="scse").eval()
            gates = [one for one in model.scse if isinstance(one, SCSE)]
            assert len(gates) == 4
            image = ramp(3, *sides_of(model))
            plain = still_net(name)
            with torch.no_grad():
                found, without = model.features(image), plain.features(image)
                for gate, one, before in zip(model.scse, found[1:], without[1:], strict=True):
                    torch.testing.assert_close(one, gate(before))


def test_attention_of_the_library_needs_channels():
    with pytest.raises(
        InputError, match=r"attention: 'scse' of architecture 'unetplusplus' needs 16 .* map of 8"
    ):
        net_of("unetplusplus", attention="scse", encoder="tu-mobilenetv2_035")


def test_attention_of_the_library():
    from segmentation_models_pytorch.base.modules import SCSEModule

    for name in ("unet", "unetplusplus"):
        assert SCSEModule in kinds(net_of(name, attention="scse").decoder)


def test_activation_of_the_decoder(subtests):
    for name in [name for name in NAMES if "activation" in ARCHITECTURES[name].options]:
        with subtests.test(name=name):
            model = net_of(name, activation="elu")
            assert nn.ELU in kinds(model.decoder)
            assert nn.ReLU not in kinds(model.decoder) or SCSE in kinds(model.decoder)


# stems


def test_stems(subtests):
    for stem, encoder, strides in [
        ("stride1", "resnet18", [1, 1, 1, 2, 4]),
        ("conv3x3", "resnet18", [1, 2, 4, 8, 16]),
        ("conv3x3_stride1", "resnet18", [1, 1, 1, 2, 4]),
        ("conv3x3_stride1", "tu-resnet18", [1, 1, 1, 2, 4]),
        ("stride1", "tu-test_resnet", [1, 1, 1, 2, 4]),
    ]:
        with subtests.test(stem=stem, encoder=encoder, strides=strides):
            model = net_of("unet", encoder=encoder, stem=stem).eval()
            assert model.divisor == strides[-1]
            with torch.no_grad():
                maps = model.features(torch.zeros(1, 3, 32, 48))
                assert [32 // one.shape[-2] for one in maps] == strides
                assert model(torch.zeros(1, 3, 32, 48)).mask_logits.shape == (1, 1, 32, 48)
            if stem.startswith("conv3x3"):
                weights = model.encoder.state_dict()[stem_weight(model.encoder)]
                assert weights.shape == (64, 3, 3, 3)


def test_stems_of_stride_one_with_other_decoders(subtests):
    for name in ["pspnet", "pan", "deeplabv3", "deeplabv3plus", "upernet", "segformer"]:
        with subtests.test(name=name):
            model = net_of(name, encoder="resnet18", stem="stride1", encoder_depth=5).eval()
            with torch.no_grad():
                assert model(torch.zeros(1, 3, 24, 32)).mask_logits.shape == (1, 1, 24, 32)
                deepest = model.features(torch.zeros(1, 3, 32, 32))[-1]
            assert 32 // deepest.shape[-1] == model.divisor


@pytest.mark.parametrize("channels", [1, 3, 12])
@pytest.mark.parametrize("stem", ["own", "stride1", "conv3x3_stride1"])
def test_pretrained_weights_load_into_every_stem(tmp_path, caplog, stem, channels):
    source = net_of("unet", encoder="resnet18")
    save_file(dict(source.encoder.state_dict()), tmp_path / "w.safetensors")
    config = config_of("unet", encoder="resnet18", stem=stem, encoder_weights=str(tmp_path / "w.safetensors"))
    model = build_model(config, in_channels=channels, seed=4)
    own, theirs = model.encoder.state_dict(), source.encoder.state_dict()
    torch.testing.assert_close(own["layer1.0.conv1.weight"], theirs["layer1.0.conv1.weight"])
    if stem == "conv3x3_stride1":
        assert "model.stem: conv1.weight keeps random weights" in caplog.text
        assert own["conv1.weight"].shape == (64, channels, 3, 3)
    else:
        assert caplog.text == ""
        torch.testing.assert_close(own["conv1.weight"], adapt_stem(theirs["conv1.weight"], channels))


def test_pretrained_scale_stays_under_group_norm(tmp_path):
    source = net_of("unet", encoder="resnet18")
    tensors = {name: torch.full_like(value, 2) for name, value in source.encoder.state_dict().items()}
    save_file(tensors, tmp_path / "w.safetensors")
    config = config_of(
        "unet", encoder="resnet18", encoder_norm="group", encoder_weights=str(tmp_path / "w.safetensors")
    )
    assert build_model(config, in_channels=3, seed=0).encoder.bn1.weight.tolist() == [2.0] * 64
    assert "bn1.running_mean" in read_weights(tmp_path / "w.safetensors")


def test_stems_that_an_encoder_does_not_have(subtests):
    for encoder, stem, message in [
        (
            "mobilenet_v2",
            "stride1",
            "stem: 'stride1' is not supported by 'mobilenet_v2', .* or one of resnet18",
        ),
        ("tu-test_resnet", "conv3x3", "whose first convolution is 3x3 already; choose 'own'"),
        ("tu-test_resnet", "conv3x3_stride1", "3x3 already; choose 'stride1'"),
    ]:
        with subtests.test(encoder=encoder, stem=stem), pytest.raises(InputError, match=message):
            net_of("unet", encoder=encoder, stem=stem)


# gradient checkpointing


@pytest.mark.slow
def test_checkpointing_changes_no_number(subtests):
    for name in NAMES:
        with subtests.test(name=name):
            plain, saving = net_of(name), net_of(name, gradient_checkpointing=True)
            assert list(saving.state_dict()) == list(plain.state_dict())
            image = torch.rand(2, 3, *sides_of(plain))
            for model in (plain, saving):
                torch.manual_seed(0)  # dropout within the library's decoders
                model(image).mask_logits.square().mean().backward()
            for (key, one), two in zip(plain.named_parameters(), saving.parameters(), strict=True):
                assert (one.grad is None) == (two.grad is None), key
                if one.grad is not None:
                    torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6, msg=key)
            for (key, one), two in zip(plain.named_buffers(), saving.buffers(), strict=True):
                assert torch.equal(one, two), key  # computed twice, counted once


def test_checkpointing_keeps_less():
    def kept(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one: sizes.append(one.numel()) or one, lambda one: one
        ):
            model(torch.rand(2, 3, 64, 64)).mask_logits.sum()
        return sum(sizes)

    plain, saving = (
        net_of("unet", encoder="resnet18", gradient_checkpointing=flag) for flag in (False, True)
    )
    assert kept(saving) < 0.5 * kept(plain)


def test_checkpointing_survives_a_copy_and_the_quick_depthwise():
    model = net_of("unet", encoder="mobilenet_v2", gradient_checkpointing=True)
    assert quicken_depthwise(model) > 0
    twin = copy.deepcopy(model)
    image = torch.rand(2, 3, 32, 32)
    twin(image).mask_logits.sum().backward()
    assert all(weight.grad is None for weight in model.parameters())
    assert any(weight.grad is not None for weight in twin.parameters())


def test_the_attention_of_pan_is_the_librarys_on_maps_of_eight():
    from segmentation_models_pytorch.decoders.pan.decoder import FPABlock

    library = FPABlock(6, 4).eval()
    ours = copy.deepcopy(library)
    ours.__class__ = AnySizeFPA
    with torch.no_grad():
        torch.testing.assert_close(ours(torch.ones(1, 6, 16, 8)), library(torch.ones(1, 6, 16, 8)))
        assert ours(torch.ones(1, 6, 1, 3)).shape == (1, 4, 1, 3)


def test_a_stem_is_replaced_in_place():
    model = net_of("unet", encoder="resnet18")
    replace_stem(model.encoder, "conv3x3_stride1", name="resnet18")
    assert model.encoder.conv1.stride == (1, 1)
    assert isinstance(model.encoder.maxpool, nn.Identity)
