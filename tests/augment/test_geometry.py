"""The composed map: exact copies, masks without new values, image and mask together, against each step alone."""

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.augment.distortions import Elastic, Lens, Piecewise, Stretch
from masksmith.augment.geometry import (
    DISTORTIONS,
    GeometryConfig,
    Motion,
    draw_affine,
    draw_more,
    scale_geometry,
)
from masksmith.augment.warp import warp
from masksmith.core.errors import InputError
from masksmith.preprocess import Pad

EVERY = {
    "hflip": {"hflip": 1.0},
    "vflip": {"vflip": 1.0},
    "rot90": {"rot90": 1.0},
    "transpose": {"transpose": 1.0},
    "rotate": {"rotate_deg": 45.0},
    "scale": {"scale_range": (0.6, 1.5)},
    "aspect": {"aspect_range": (0.6, 1.5)},
    "shear": {"shear_deg": 20.0},
    "shift": {"shift_frac": 0.2},
    "crop_zoom": {"crop_zoom": {"probability": 1.0, "side_frac_range": (0.6, 0.9)}},
    "perspective": {"perspective": {"probability": 1.0, "corner_frac": 0.15}},
    "piecewise_affine": {"piecewise_affine": {"probability": 1.0, "cells": 3, "shift_frac": 0.05}},
    "elastic": {"elastic": {"probability": 1.0, "shift_frac": 0.03, "sigma_frac": 0.1}},
    "grid": {"grid": {"probability": 1.0, "cells": 4, "limit": 0.5}},
    "optical": {"optical": {"probability": 1.0, "strength": 0.5}},
    "pincushion": {"pincushion": {"probability": 1.0, "strength": 0.5}},
}
ALL = GeometryConfig(**{key: value for part in EVERY.values() for key, value in part.items()})


def blobs(hw=(60, 72), seed=0, classes=2):
    """A mask with one disk a class."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(hw, np.uint8)
    for value in range(1, classes):
        at = rng.integers(10, min(hw) - 10, 2).tolist()
        cv2.circle(mask, at, int(rng.integers(5, 10)), value, -1)
    return mask


def smooth(hw, channels=1, seed=0, dtype=np.uint8):
    """An image without edges, so that twice interpolated is nearly once interpolated."""
    noise = np.random.default_rng(seed).normal(size=(*hw, channels))
    image = np.stack([cv2.GaussianBlur(noise[..., i], (0, 0), 5) for i in range(channels)], -1)
    image = (image - image.min()) / (image.max() - image.min())
    return (image * np.iinfo(dtype).max).astype(dtype)


def draw(config, seed=0):
    rng = np.random.default_rng(seed)
    return draw_more(config, draw_affine(config, rng), rng)


def test_every_field_is_tested():
    probabilities = {"probability", "scale_distribution"}
    assert {key for part in EVERY.values() for key in part} == set(
        GeometryConfig.model_fields
    ) - probabilities


def test_image_and_mask_move_together(subtests):
    for border, name in itertools.product(["reflect", "edge", "zero"], EVERY):
        with subtests.test(border=border, name=name):
            config, mask = GeometryConfig(**EVERY[name]), blobs()
            moved_somewhere = False
            for seed in range(4):
                moved, target = warp(
                    (mask * 255)[..., None], mask, draw(config, seed), canvas_hw=(64, 80), border=border
                )
                np.testing.assert_array_equal(target == 1, moved[..., 0] > 127)
                plain, _ = warp((mask * 255)[..., None], mask, Motion(), canvas_hw=(64, 80), border=border)
                moved_somewhere |= bool((moved != plain).any())
            assert moved_somewhere


def test_any_number_of_channels_and_16_bits(subtests):
    for dtype, channels in itertools.product([np.uint8, np.uint16], [1, 2, 3, 4, 5, 7, 12]):
        with subtests.test(dtype=dtype, channels=channels):
            image, mask = smooth((50, 60), channels, dtype=dtype), blobs((50, 60))
            for config in (GeometryConfig(rotate_deg=30.0), ALL, GeometryConfig(hflip=1.0, rot90=1.0)):
                motion = draw(config, 3)
                moved, target = warp(image, mask, motion, canvas_hw=(64, 64))
                assert moved.shape == (64, 64, channels)
                assert moved.dtype == dtype
                for channel in range(channels):
                    alone, same = warp(image[..., [channel]], mask, motion, canvas_hw=(64, 64))
                    np.testing.assert_array_equal(target, same)
                    np.testing.assert_allclose(
                        moved[..., channel].astype(int),
                        alone[..., 0].astype(int),
                        atol=np.iinfo(dtype).max // 100,
                    )


def test_the_eight_symmetries_are_exact_copies(subtests):
    for channels, dtype in itertools.product([1, 2, 3, 6], [np.uint8, np.uint16]):
        with subtests.test(channels=channels, dtype=dtype):
            rng = np.random.default_rng(0)
            image = rng.integers(0, np.iinfo(dtype).max, (16, 16, channels)).astype(dtype)
            mask = rng.integers(0, 5, (16, 16)).astype(np.uint8)
            found = set()
            for transpose in (False, True):
                for vflip in (False, True):
                    for hflip in (False, True):
                        moved, target = warp(image, mask, Motion(hflip, vflip, transpose), canvas_hw=(16, 16))
                        wanted = image.transpose(1, 0, 2) if transpose else image
                        layer = mask.T if transpose else mask
                        rows, columns = (
                            slice(None, None, -1 if vflip else 1),
                            slice(None, None, -1 if hflip else 1),
                        )
                        np.testing.assert_array_equal(moved, wanted[rows, columns])
                        np.testing.assert_array_equal(target, layer[rows, columns])
                        found.add(target.tobytes())
            assert len(found) == 8


def test_quarter_turns_are_those_of_numpy():
    image = np.arange(30, dtype=np.uint8).reshape(5, 6, 1)
    turns = {np.rot90(image, k).tobytes() for k in range(4)}
    drawn = [draw(GeometryConfig(rot90=1.0), seed) for seed in range(40)]
    found = set()
    for motion in drawn:
        hw = (6, 5) if motion.transpose else (5, 6)
        found.add(warp(image, image[..., 0], motion, canvas_hw=hw)[0].tobytes())
    assert found == turns


def test_mirror_and_quarter_turns_make_all_symmetries_alike_often():
    config = GeometryConfig(hflip=0.5, rot90=1.0)
    drawn = [draw(config, seed) for seed in range(1600)]
    counts = {}
    for motion in drawn:
        key = (motion.transpose, motion.vflip, motion.hflip)
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 8
    assert min(counts.values()) > 150


def test_turns_within_a_warp_are_turns_before_it(subtests):
    for vflip, hflip, transpose in itertools.product([False, True], [False, True], [False, True]):
        with subtests.test(vflip=vflip, hflip=hflip, transpose=transpose):
            image, mask = smooth((40, 56), 3), blobs((40, 56), classes=4)
            rest = {"angle_rad": 0.3, "zoom": 1.2, "shear": 0.1, "shift_frac": (0.1, -0.05)}
            turned, layer = warp(
                image, mask, Motion(hflip, vflip, transpose), canvas_hw=(56, 40) if transpose else (40, 56)
            )
            once = warp(
                image, mask, Motion(hflip, vflip, transpose, **rest), canvas_hw=(48, 48), zoom_yx=(0.9, 1.1)
            )
            zoom = (1.1, 0.9) if transpose else (0.9, 1.1)
            twice = warp(turned, layer, Motion(**rest), canvas_hw=(48, 48), zoom_yx=zoom)
            np.testing.assert_allclose(once[0].astype(int), twice[0].astype(int), atol=2)
            assert (once[1] != twice[1]).mean() < 0.01


def test_copies_take_windows_and_padding_of_the_turned_image():
    image, mask = smooth((40, 30), 2), blobs((40, 30))
    motion = Motion(hflip=True, transpose=True, crop_frac=(1.0, 0.25))
    moved, target = warp(image, mask, motion, canvas_hw=(48, 32))
    turned = image.transpose(1, 0, 2)[:, ::-1]  # 30 x 40: 18 rows of padding, a window of 32 columns
    wanted = Pad.to_size((30, 32), (48, 32)).apply(turned[:, 2:34])
    np.testing.assert_array_equal(moved, wanted)
    layer = mask.T[:, ::-1][:, 2:34]
    np.testing.assert_array_equal(target, Pad.to_size((30, 32), (48, 32)).apply(layer[..., None])[..., 0])


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    values=st.lists(st.sampled_from([0, 1, 2, 3, 17, 254, 255]), min_size=1, max_size=5),
    border=st.sampled_from(["reflect", "edge", "zero"]),
)
def test_masks_keep_their_values_at_any_size(seed, height, width, values, border):
    rng = np.random.default_rng(seed)
    mask = rng.choice(np.array(values, np.uint8), (height, width))
    image = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
    moved, target = warp(image, mask, draw(ALL, seed), canvas_hw=(32, 48), border=border)
    assert moved.shape == (32, 48, 3)
    assert set(np.unique(target)) <= set(values) | ({0} if border == "zero" else set())


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_layers_move_like_masks_of_their_own(seed):
    rng = np.random.default_rng(seed)
    layers = rng.choice(np.array([0, 1, 255], np.uint8), (30, 40, 3), p=[0.6, 0.3, 0.1])
    image, motion = smooth((30, 40)), draw(ALL, seed)
    _, target = warp(image, layers, motion, canvas_hw=(32, 48))
    for at in range(3):
        _, alone = warp(image, layers[..., at], motion, canvas_hw=(32, 48))
        np.testing.assert_array_equal(target[..., at], alone)


def test_the_class_with_the_largest_share_wins():
    mask = np.zeros((40, 40), np.uint8)
    mask[:, 20:] = 7
    mask[20:, :] = 3
    motion = Motion(angle_rad=0.4, zoom=1.3)
    _, target = warp(smooth((40, 40)), mask, motion, canvas_hw=(40, 40))
    shares = [
        warp(((mask == value) * np.uint8(255))[..., None], mask, motion, canvas_hw=(40, 40))[0][..., 0]
        for value in (0, 3, 7)
    ]
    sure = np.sort(np.stack(shares), 0)[2] > 140
    assert sure.mean() > 0.8
    np.testing.assert_array_equal(target[sure], np.array([0, 3, 7])[np.argmax(shares, 0)][sure])


def test_an_ignored_mask_stays_ignored():
    mask = np.full((20, 20), 255, np.uint8)
    _, target = warp(smooth((20, 20)), mask, draw(ALL), canvas_hw=(32, 32))
    assert (target == 255).all()


# ---- the composed map against one step after the other ----


def bilinear(plane, x, y):
    return cv2.remap(
        plane.astype(np.float32),
        x.astype(np.float32),
        y.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )


def pixel_grid(hw):
    y, x = np.mgrid[: hw[0], : hw[1]].astype(np.float64)
    return x, y


def test_one_map_is_distortion_then_affine(subtests):
    for seed, name in itertools.product([1, 2], DISTORTIONS):
        with subtests.test(seed=seed, name=name):
            hw = (90, 110)
            image, mask = smooth(hw, seed=seed), blobs(hw)
            only = draw(GeometryConfig(**EVERY[name]), seed)
            motion = Motion(angle_rad=0.25, zoom=1.1, shift_frac=(0.03, -0.02), distortions=only.distortions)
            once, _ = warp(image, mask, motion, canvas_hw=(128, 128))
            x, y = pixel_grid(hw)
            points = np.stack([(x + 0.5) / hw[1], (y + 0.5) / hw[0]])
            x, y = only.distortions[0](points)
            first = bilinear(image[..., 0], x * hw[1] - 0.5, y * hw[0] - 0.5)
            affine = Motion(angle_rad=0.25, zoom=1.1, shift_frac=(0.03, -0.02))
            second, _ = warp(np.rint(first).astype(np.uint8)[..., None], mask, affine, canvas_hw=(128, 128))
            inner = (slice(35, 93), slice(30, 98))  # the border mirrors before or after the distortion
            difference = np.abs(once[..., 0].astype(int) - second[..., 0].astype(int))[inner]
            assert difference.mean() < 1.0
            assert difference.max() <= 10


def test_several_distortions_act_one_after_the_other():
    config = GeometryConfig(**{name: EVERY[name][name] for name in DISTORTIONS})
    motion = draw(config)
    assert [type(one) for one in motion.distortions] == [Piecewise, Elastic, Stretch, Lens, Lens]
    hw = (128, 128)
    x, y = pixel_grid(hw)
    points = np.stack([(x + 0.5) / hw[1], (y + 0.5) / hw[0]])
    for one in reversed(motion.distortions):
        points = one(points)
    image = smooth(hw)
    wanted = bilinear(image[..., 0], points[0] * hw[1] - 0.5, points[1] * hw[0] - 0.5)
    found, _ = warp(image, blobs(hw), motion, canvas_hw=hw)
    assert np.abs(found[..., 0] - wanted).mean() < 1.0


def test_a_perspective_moves_the_corners(subtests):
    for scaled, canvas in [(1.0, (64, 80)), (0.5, (32, 48))]:
        with subtests.test(scaled=scaled, canvas=canvas):
            corners = ((0.1, 0.05), (-0.1, 0.1), (-0.05, -0.1), (0.05, -0.08))  # all move inwards
            hw = (64, 80)
            x, y = pixel_grid(hw)
            image = np.stack([x * 3, y * 3], -1).astype(np.uint8)  # each pixel knows where it comes from
            moved, _ = warp(
                image, blobs(hw), Motion(corners=corners), canvas_hw=canvas, zoom_yx=(scaled, scaled)
            )
            top, left = [(side - scaled * own) / 2 for side, own in zip(canvas, hw, strict=True)]
            for (cx, cy), shift in zip([(0, 0), (1, 0), (1, 1), (0, 1)], corners, strict=True):
                # two pixels inside the corner, where it must now lie
                column = left + ((cx + shift[0]) * hw[1]) * scaled + (4 if cx == 0 else -5) * scaled
                row = top + ((cy + shift[1]) * hw[0]) * scaled + (4 if cy == 0 else -5) * scaled
                found = moved[round(row), round(column)] / 3
                assert abs(found[0] - cx * (hw[1] - 1)) < 9
                assert abs(found[1] - cy * (hw[0] - 1)) < 9


def test_a_lens_is_barrel_or_pincushion():
    corner = np.array([[[1.0]], [[1.0]]])
    middle = np.array([[[0.5]], [[0.5]]])
    assert Lens(0.2)(corner).max() == pytest.approx(1.1)  # looks beyond the corner: the image shrinks
    assert Lens(-0.2)(corner).max() == pytest.approx(0.9)
    np.testing.assert_array_equal(Lens(0.2)(middle), middle)
    config = GeometryConfig(pincushion={"probability": 1.0, "strength": 0.3})
    assert all(draw(config, seed).distortions[0].strength <= 0 for seed in range(20))


def test_the_grid_keeps_edges_and_order():
    config = GeometryConfig(grid={"probability": 1.0, "cells": 6, "limit": 0.9})
    stretch = draw(config).distortions[0]
    for edges in (stretch.edges_x, stretch.edges_y):
        assert (edges[0], edges[-1]) == (0.0, pytest.approx(1.0))
        assert (np.diff(edges) > 0).all()
        assert np.abs(np.diff(edges) - 1 / 6).max() > 0.02


def test_piecewise_affine_is_exact_at_nodes_and_affine_between():
    shifts = np.random.default_rng(0).normal(0, 0.1, (3, 3, 2))
    piecewise = Piecewise(shifts)
    for row in range(3):
        for column in range(3):
            at = np.array([column / 2, row / 2]).reshape(2, 1, 1)
            np.testing.assert_allclose((piecewise(at) - at)[:, 0, 0], shifts[row, column], atol=1e-12)
    inside = np.array([[0.3, 0.3 + 0.05, 0.3 + 0.1], [0.1, 0.1 + 0.02, 0.1 + 0.04]])[:, None, :]
    moved = piecewise(inside)[:, 0]  # three points on a line in one triangle: equally spaced again
    np.testing.assert_allclose(moved[:, 1] - moved[:, 0], moved[:, 2] - moved[:, 1], atol=1e-12)


def test_the_elastic_shift_has_the_spread_that_was_asked_for(subtests):
    for sigma in [0.03, 0.08, 0.3]:
        with subtests.test(sigma=sigma):
            config = GeometryConfig(elastic={"probability": 1.0, "shift_frac": 0.02, "sigma_frac": sigma})
            x, y = pixel_grid((40, 40))
            points = np.stack([(x + 0.5) / 40, (y + 0.5) / 40])
            found = [draw(config, seed).distortions[0](points) - points for seed in range(60)]
            assert np.std(found) == pytest.approx(0.02, rel=0.15)


# ---- ranges and draws ----


def test_nothing_asked_is_the_identity():
    motion = draw(GeometryConfig())
    assert motion == Motion(crop_frac=motion.crop_frac)


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10_000))
def test_draws_stay_in_their_ranges(seed):
    motion = draw(ALL, seed)
    assert abs(np.rad2deg(motion.angle_rad)) <= 45
    assert 0.6 <= motion.zoom <= 1.5
    assert 0.6 - 1e-9 <= motion.aspect <= 1.5 + 1e-9
    assert abs(np.rad2deg(np.arctan(motion.shear))) <= 20 + 1e-9
    assert max(map(abs, motion.shift_frac)) <= 0.2
    y, x, side = motion.window
    assert 0.6 <= side <= 0.9
    assert min(y, x) - side / 2 >= -1e-9
    assert max(y, x) + side / 2 <= 1 + 1e-9
    assert np.abs(motion.corners).max() <= 0.15
    assert len(motion.distortions) == 5


def test_switching_one_part_on_changes_no_other_draw():
    base = GeometryConfig(hflip=0.5, rotate_deg=10.0, scale_range=(0.8, 1.2), shift_frac=0.1)
    more = base.model_copy(update={"perspective": ALL.perspective})
    most = more.model_copy(update={"elastic": ALL.elastic, "crop_zoom": ALL.crop_zoom})
    for seed in range(20):
        first, second, third = draw(base, seed), draw(more, seed), draw(most, seed)
        assert (first.angle_rad, first.zoom, first.hflip) == (third.angle_rad, third.zoom, third.hflip)
        assert second.corners == third.corners
        assert second.corners is not None


def test_a_crop_zoom_shows_the_window_at_the_size_of_the_image():
    hw = (80, 80)
    x, y = pixel_grid(hw)
    image = np.stack([x * 3, y * 3], -1).astype(np.uint8)
    moved, _ = warp(image, blobs(hw), Motion(window=(0.4, 0.5, 0.5)), canvas_hw=hw)
    columns, rows = moved[40, :, 0] / 3, moved[:, 40, 1] / 3
    np.testing.assert_allclose([columns[0], columns[-1]], [20, 60], atol=1)  # 0.5 ± 0.25 of 80
    np.testing.assert_allclose([rows[0], rows[-1]], [12, 52], atol=1)  # 0.4 ± 0.25 of 80


def test_the_aspect_keeps_the_area():
    mask = np.zeros((100, 100), np.uint8)
    mask[40:60, 40:60] = 1
    _, target = warp(smooth((100, 100)), mask, Motion(aspect=2.0), canvas_hw=(100, 100))
    height, width = (int(target.any(axis).sum()) for axis in (1, 0))
    assert width / height == pytest.approx(2.0, rel=0.12)
    assert target.sum() == pytest.approx(400, rel=0.08)


def test_the_focus_is_centred_as_far_as_the_edges_allow():
    hw = (200, 300)
    mask = np.zeros(hw, np.uint8)
    for row, column in ((100, 150), (60, 220), (5, 5), (195, 295)):
        mask[:] = 0
        mask[row, column] = 1
        for turn in ({}, {"hflip": True}, {"transpose": True, "vflip": True}):
            motion = Motion(focus=((row + 0.5) / 200, (column + 0.5) / 300), crop_frac=(0.0, 0.0), **turn)
            _, target = warp(smooth(hw), mask, motion, canvas_hw=(64, 64))
            assert target.sum() == 1
            if (row, column) in ((100, 150), (60, 220)):
                assert np.abs(np.argwhere(target)[0] - 31.5).max() <= 1


def test_a_small_part_of_a_large_image_is_what_the_whole_warp_shows():
    image, mask = smooth((400, 500), 3), blobs((400, 500), classes=3)
    motion = Motion(angle_rad=0.5, crop_frac=(0.6, 0.3))
    small = warp(image, mask, motion, canvas_hw=(64, 64))
    big = warp(image, mask, motion, canvas_hw=(400, 500))[0]
    rows, columns = round((400 - 64) * 0.6), round((500 - 64) * 0.3)
    np.testing.assert_allclose(
        small[0].astype(int), big[rows : rows + 64, columns : columns + 64].astype(int), atol=2
    )


def test_padding_beforehand_shows_what_the_border_mode_of_the_warp_shows(subtests):
    for border in ["reflect", "edge", "zero"]:
        with subtests.test(border=border):
            from masksmith.preprocess import CV2_BORDERS

            image, mask = smooth((30, 40)), blobs((30, 40))
            motion = Motion(angle_rad=0.6, zoom=0.7, shift_frac=(0.3, -0.2))
            moved, _ = warp(image, mask, motion, canvas_hw=(64, 64), border=border)
            from masksmith.augment.geometry import motion_matrix

            matrix = motion_matrix(motion, (30, 40), (64, 64), zoom_yx=(1.0, 1.0))
            plain = cv2.warpAffine(
                image, matrix[:2], (64, 64), flags=cv2.INTER_LINEAR, borderMode=CV2_BORDERS[border]
            )
            np.testing.assert_allclose(moved[..., 0].astype(int), plain.astype(int), atol=3)


def test_a_canvas_far_larger_than_the_image_is_not_padded_beforehand():
    image, mask = smooth((8, 8)), np.ones((8, 8), np.uint8)
    moved, target = warp(image, mask, Motion(angle_rad=0.1, zoom=0.05), canvas_hw=(64, 64), border="zero")
    assert (target == 0).mean() > 0.99
    assert (moved == 0).mean() > 0.9


# ---- strength and presets ----


def test_strength_zero_is_the_identity_and_one_is_itself():
    still = scale_geometry(ALL, 0.0)
    assert scale_geometry(ALL, 1.0) is ALL
    image, mask = smooth((40, 40)), blobs((40, 40))
    for seed in range(5):
        moved, target = warp(image, mask, draw(still, seed), canvas_hw=(40, 40))
        np.testing.assert_allclose(moved.astype(int), image.astype(int), atol=1)
        np.testing.assert_array_equal(target, mask)


def test_strength_scales_the_ranges():
    half = scale_geometry(ALL, 0.5)
    assert half.rotate_deg == 22.5
    assert half.scale_range == pytest.approx((0.6**0.5, 1.5**0.5))
    assert half.crop_zoom.side_frac_range == pytest.approx((0.8, 0.95))
    assert half.elastic.shift_frac == 0.015
    assert half.hflip == 0.5
    assert scale_geometry(GeometryConfig(rotate_deg=20.0), 2.0).rotate_deg == 40.0


def test_zoom_is_drawn_uniformly_where_asked():
    config = GeometryConfig(scale_range=(0.4, 1.6), scale_distribution="uniform")
    zooms = np.array([draw(config, seed).zoom for seed in range(2000)])
    assert zooms.mean() == pytest.approx(1.0, abs=0.03)
    assert zooms.std() == pytest.approx(1.2 / 12**0.5, abs=0.02)
    log = GeometryConfig(scale_range=(0.4, 1.6))
    assert np.mean([draw(log, seed).zoom for seed in range(2000)]) == pytest.approx(1.2 / np.log(4), abs=0.03)
    assert scale_geometry(config, 0.5).scale_range == pytest.approx((0.7, 1.3))
    with pytest.raises(InputError, match=r"strength: 2 makes scale_range"):
        scale_geometry(config, 2.0)


def test_a_strength_that_leaves_a_range_is_refused():
    with pytest.raises(InputError, match=r"training\.augment\.strength: 3 makes shear_deg 60\.0"):
        scale_geometry(GeometryConfig(shear_deg=20.0), 3.0, where="training.augment.strength")
