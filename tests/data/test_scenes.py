"""The generated examples of every task."""

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.randomness import stream
from masksmith.data.cache import build_cache
from masksmith.data.layouts import read_catalog
from masksmith.data.scenes import CLASSES, make_scene


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_scene_is_its_seed_and_its_discs_are_objects():
    first, again = (make_scene(stream(3, 1), (60, 90), shapes=12) for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    assert (first.image.shape, first.classes.dtype, first.discs.dtype) == ((60, 90, 3), np.uint8, np.int32)
    np.testing.assert_array_equal(first.discs > 0, first.classes == CLASSES.index("disc"))
    assert first.classes.max() == 3
    discs = make_scene(stream(3, 1), (60, 90), shapes=12, only_discs=True)
    assert set(np.unique(discs.classes)) == {0, 1}
    assert cv2.connectedComponents(discs.classes)[0] - 1 < len(np.unique(discs.discs)) - 1  # some touch


@pytest.mark.parametrize(
    ("task", "layout"), [("multiclass", "paired_folders"), ("instances", "object_folders")]
)
def test_an_example_is_read_as_its_task_and_only_an_example_is_replaced(task, layout, tmp_path):
    data = ms.example(tmp_path, train=3, test=2, task=task)
    catalog = read_catalog(data)
    assert (catalog.layout, len(catalog.train), len(catalog.test)) == (layout, 3, 2)
    cache = build_cache(catalog, tmp_path / "cache")
    assert cache.target.task == task
    assert {path.stem for path in (tmp_path / "solution").iterdir()} == set(cache.test_images)
    before = files(data)
    ms.example(tmp_path, train=3, test=2, task=task)
    assert files(data) == before
    ms.example(tmp_path, train=3, test=2, task=task, seed=1)
    fresh = ms.example(tmp_path / "fresh", train=3, test=2, task=task, seed=1)
    assert files(data) == files(fresh) != before  # nothing of the earlier one stays
    ms.example(tmp_path, train=2, test=2, task=task, seed=1)
    assert len(read_catalog(data).train) == 2
    (tmp_path / "solution/mine.png").write_bytes(b"mine")
    ms.example(tmp_path, train=3, test=2, task=task)
    assert (tmp_path / "solution/mine.png").read_bytes() == b"mine"
    (tmp_path / "solution/test_0001.png").write_bytes(b"mine")
    with pytest.raises(
        InputError, match=r"test_0001\.png: there already, and `masksmith example` did not make it so"
    ):
        ms.example(tmp_path, train=3, test=2, task=task)


def test_large_examples_and_unknown_tasks(tmp_path):
    ms.example(tmp_path / "large", train=1, test=0, task="binary", large=True)
    mask = cv2.imread(str(tmp_path / "large/data/masks/train_0000.png"), cv2.IMREAD_UNCHANGED)
    assert min(mask.shape) >= 1024
    assert max(mask.shape) <= 1536
    assert np.unique(mask).tolist() == [0, 255]
    with pytest.raises(InputError, match="--task: 'classes' is unknown"):
        ms.example(tmp_path / "none", train=1, test=0, task="classes")
    assert not (tmp_path / "none").exists()
