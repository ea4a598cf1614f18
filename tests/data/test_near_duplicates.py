import cv2
import numpy as np
import pytest

from masksmith.data.look import joined, look, perceptual_hash, thumbnail
from masksmith.data.near_duplicates import near_groups, own_kind
from tests.data.alike import store_of, texture


def groups_of(path, images):
    store = store_of(path, images)
    seen = look(store)
    found = near_groups(seen, lambda at: thumbnail(store[str(seen.names[at])]))
    return dict(zip(images, found.tolist(), strict=True))


def changed(image, kind):
    rng = np.random.default_rng(9)
    if kind == "brighter":
        return np.clip(image.astype(int) + 1, 0, 255).astype(np.uint8)
    if kind == "jpeg":
        return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 75])[1], 0)[..., None]
    if kind == "noise":
        return np.clip(image + 3 * rng.standard_normal(image.shape), 0, 255).astype(np.uint8)
    return cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA)[..., None]


def test_the_same_picture_stored_anew_joins_and_textures_of_one_layout_do_not(tmp_path):
    images = {f"t{seed}": texture(seed) for seed in range(40)}
    kinds = ("brighter", "jpeg", "noise", "smaller")
    images |= {kind: changed(images[f"t{at}"], kind) for at, kind in enumerate(kinds)}
    found = groups_of(tmp_path / "a.npy", images)
    assert [found[kind] for kind in kinds] == [0, 1, 2, 3]
    assert len(set(found.values())) == 40


def test_identical_images_share_a_group_and_constant_ones_join_nothing_else(tmp_path):
    flat = np.full((20, 20, 1), 7, np.uint8)
    images = {"a": flat, "b": flat.copy(), "c": flat + 1, "d": texture(0), "e": texture(0)}
    assert list(groups_of(tmp_path / "a.npy", images).values()) == [0, 0, 2, 3, 3]


def test_one_bright_spot_does_not_join_different_pictures(tmp_path):
    images = {str(seed): texture(seed, shared=0) // 4 for seed in range(6)}
    for image in images.values():
        image[50:56, 50:56] = 255  # a burnt-in mark
    assert len(set(groups_of(tmp_path / "a.npy", images).values())) == 6


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32])
def test_any_type_bands_and_no_data(tmp_path, dtype):
    images = {str(seed): texture(seed, c=5).astype(dtype) * 3 for seed in range(4)}
    near = images["0"].copy()
    near[::7, ::5] += dtype(1)
    images["near"] = near
    if dtype is np.float32:
        near[:5] = np.nan
    found = groups_of(tmp_path / "a.npy", images)
    assert found["near"] == 0
    assert len(set(found.values())) == 4
    assert np.isfinite(thumbnail(near)).all()


def test_a_thumbnail_has_mean_0_and_norm_1_and_a_constant_image_none():
    small = thumbnail(texture(1, c=3))
    assert small.mean() == pytest.approx(0, abs=1e-6)
    assert (small**2).sum() == pytest.approx(1, abs=1e-5)
    assert not thumbnail(np.full((9, 5, 3), 8, np.uint8)).any()
    assert np.array_equal(perceptual_hash(small), perceptual_hash(2 * small))


def test_what_was_seen_is_kept_until_the_store_changes(tmp_path):
    images = {str(seed): texture(seed) for seed in range(3)}
    first = look(store_of(tmp_path / "a.npy", images))
    path = tmp_path / "a.look.npz"
    kept = path.stat().st_mtime_ns
    assert np.array_equal(look(store_of(tmp_path / "a.npy", images)).hashes, first.hashes)
    assert path.stat().st_mtime_ns == kept
    path.write_bytes(path.read_bytes()[:900])
    assert look(store_of(tmp_path / "a.npy", images)).pixels.tolist() == first.pixels.tolist()
    other = look(store_of(tmp_path / "a.npy", images | {"2": texture(7)}))
    assert (other.pixels == first.pixels).tolist() == [True, True, False]
    assert joined(first, look(store_of(tmp_path / "none.npy", {}))) is first
    assert len(joined(first, other)) == 6


def test_most_similar_of_their_own_kind(tmp_path):
    images = {f"{kind}{at}": changed(texture(kind), "brighter") + at for kind in range(4) for at in range(3)}
    seen = look(store_of(tmp_path / "a.npy", images))
    own, chance = own_kind(seen, np.repeat(np.arange(4), 3))
    assert own == 1
    assert chance == pytest.approx(2 / 11)
    assert own_kind(seen, np.tile(np.arange(3), 4))[0] == 0
