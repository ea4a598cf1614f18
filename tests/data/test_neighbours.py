import cv2
import numpy as np

from masksmith.data.look import look
from masksmith.data.neighbours import find_neighbours
from tests.data.alike import store_of, texture


def picture(h, w, seed):
    field = cv2.GaussianBlur(
        np.random.default_rng(seed).standard_normal((h, w)).astype(np.float32), (0, 0), 2.5
    )
    return np.clip(128 + 300 * field, 0, 255).astype(np.uint8)


def test_tiles_of_one_picture_are_found_and_others_are_not(tmp_path):
    whole = picture(320, 400, 0)
    tiles = {
        f"{y}_{x}": whole[80 * y : 80 * y + 80, 80 * x : 80 * x + 80, None]
        for y in range(4)
        for x in range(5)
    }
    order = np.random.default_rng(1).permutation(list(tiles))
    images = {str(name): tiles[str(name)] for name in order}
    seen = look(store_of(tmp_path / "a.npy", images))
    found = find_neighbours(seen, np.arange(len(seen)))
    names = [(str(seen.names[a]), str(seen.names[b])) for a, b in found.pairs]
    right = {(f"{y}_{x}", f"{y}_{x + 1}") for y in range(4) for x in range(4)}
    right |= {(f"{y}_{x}", f"{y + 1}_{x}") for y in range(3) for x in range(5)}
    assert set(names) <= right
    assert len(names) > 0.8 * len(right)
    assert found.sure

    apart = look(
        store_of(tmp_path / "b.npy", {str(seed): picture(80, 80, seed)[..., None] for seed in range(60)})
    )
    assert not find_neighbours(apart, np.arange(60)).sure


def test_images_of_a_layout_flat_edges_and_few_images_give_none(tmp_path):
    images = {str(seed): texture(seed) for seed in range(30)} | {"thin": np.zeros((1, 1, 1), np.uint8)}
    for name in "012345":
        images[name][:, :3] = images[name][:, -3:] = 0
    seen = look(store_of(tmp_path / "a.npy", images))
    assert not find_neighbours(seen, np.arange(31)).sure
