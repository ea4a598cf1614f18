"""Folders of corrected masks: read, refused, and put in the place of the data's in training alone."""

import cv2
import numpy as np
import pytest

from masksmith.core.errors import InputError
from masksmith.data.store import Store, StoreWriter
from masksmith.data.target import BINARY, Target
from masksmith.training.corrections import (
    MendedMasks,
    corrections_hash,
    drawn_again,
    read_corrections,
    write_mended,
)

IDS = [f"a{at}" for at in range(6)]


@pytest.fixture
def masks(tmp_path):
    writer = StoreWriter(tmp_path / "masks.npy", [(name, (8, 10, 1)) for name in IDS], dtype=np.uint8)
    for name in IDS:
        mask = np.zeros((8, 10, 1), np.uint8)
        mask[0, 0] = 255  # not judged
        writer.write(name, mask)
    writer.close()
    return Store(tmp_path / "masks.npy")


def write(folder, table, **pngs):
    folder.mkdir(exist_ok=True)
    (folder / "corrections.csv").write_text(table)
    for name, mask in pngs.items():
        cv2.imwrite(str(folder / f"{name}.png"), mask)
    return str(folder)


def test_a_folder_is_read_and_its_masks_replace_those_of_the_data(tmp_path, masks):
    table = "id,action,weight,note\na0,keep,,fine\na1,drop,,\na2,wrong,,shadow\na3,mend,0.5,\na4,keep,0.25,\n"
    folder = write(tmp_path / "c", table, a3=np.full((8, 10), 255, np.uint8))
    found = read_corrections(folder, masks, BINARY)
    assert found.dropped == {"a1", "a2"}
    assert found.weights == {"a3": 0.5, "a4": 0.25}
    assert found.mended == ("a3",)
    assert found.changed == {"a1", "a2", "a3", "a4"}
    write_mended(tmp_path / "m.npy", found, masks, BINARY)
    both = MendedMasks(masks, Store(tmp_path / "m.npy"))
    assert list(both) == IDS
    assert both["a3"][0, 0] == 255  # what is not judged stays so
    assert (both["a3"].ravel()[1:] == 1).all()
    assert (both.window("a3", slice(1, 2), slice(0, 10)) == 1).all()
    assert both.shape("a3") == (8, 10)
    assert not both["a4"].ravel()[1:].any()


def test_masks_of_a_review_page_are_numbers_of_classes(tmp_path, masks):
    drawn = np.zeros((8, 10), np.uint8)
    drawn[2], drawn[3] = 1, 255
    folder = write(tmp_path / "c", "id,action,note,version\na3,mend,,2\n", a3=drawn)
    for target in (BINARY, Target("multiclass", ("ground", "roof"), (7, 9))):
        found = read_corrections(folder, masks, target)
        write_mended(tmp_path / "m.npy", found, masks, target)
        mended = Store(tmp_path / "m.npy")["a3"]
        assert np.array_equal(mended.reshape(8, 10), drawn)
    write(tmp_path / "c", "id,action,note,version\na3,mend,,2\n", a3=np.full((8, 10), 2, np.uint8))
    with pytest.raises(InputError, match=r"values \[2\]; expected 0 to 1, and 255 for not judged"):
        read_corrections(folder, masks, BINARY)
    (tmp_path / "c" / "a3.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="no mask of one channel of 8 bits; mend it again"):
        read_corrections(folder, masks, BINARY)


def test_a_picture_in_the_place_of_a_mask_is_named(tmp_path, masks):
    folder = write(tmp_path / "c", "id,action\na3,mend\n", a3=np.zeros((8, 10, 3), np.uint8))
    with pytest.raises(InputError, match=r"a3.png: several channels; expected one"):
        read_corrections(folder, masks, Target("multiclass", ("ground", "roof"), (0, 1)))


def test_the_hash_is_of_tables_and_masks(tmp_path):
    folder = write(tmp_path / "c", "id,action\na0,drop\n", a1=np.zeros((8, 10), np.uint8))
    first = corrections_hash(folder)
    write(tmp_path / "c", "id,action\na0,drop\n", a1=np.ones((8, 10), np.uint8))
    assert corrections_hash(folder) != first


def test_labels_have_a_folder_each(tmp_path):
    writer = StoreWriter(tmp_path / "masks.npy", [("a", (4, 4, 2))], dtype=np.uint8)
    writer.write("a", np.zeros((4, 4, 2), np.uint8))
    writer.close()
    masks, target = Store(tmp_path / "masks.npy"), Target("multilabel", ("roof", "road"))
    folder = write(tmp_path / "c", "id,action\na,mend\n")
    for label, value in (("roof", 0), ("road", 255)):
        (tmp_path / "c" / label).mkdir()
        cv2.imwrite(str(tmp_path / "c" / label / "a.png"), np.full((4, 4), value, np.uint8))
    found = read_corrections(folder, masks, target)
    write_mended(tmp_path / "m.npy", found, masks, target)
    assert MendedMasks(masks, Store(tmp_path / "m.npy"))["a"].mean(axis=(0, 1)).tolist() == [0, 1]


def test_all_that_is_wrong_is_named_at_once(tmp_path, masks):
    with pytest.raises(
        InputError, match=r"'.*absent': no such folder; expected a folder with corrections\.csv"
    ):
        corrections_hash(str(tmp_path / "absent"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"no corrections\.csv in it"):
        corrections_hash(str(tmp_path / "bare"))
    with pytest.raises(InputError, match="action"):
        read_corrections(write(tmp_path / "d", "id,verdict\na0,drop\n"), masks, BINARY)
    table = "id,action,weight\nzz,drop,\na0,burn,\na1,keep,1.5\na2,keep,x\na3,mend,\na4,mend,\na5,drop,\na5,drop,\n"
    folder = write(tmp_path / "c", table, a4=np.zeros((3, 3), np.uint8))
    with pytest.raises(InputError) as found:
        read_corrections(folder, masks, BINARY)
    text = str(found.value)
    for words in (
        "7 rows cannot be used",
        "'zz': no training image",
        "'a0': action 'burn'",
        "'a1': weight '1.5'",
        "'a2': weight 'x'",
        "a3.png: no mask there",
        "a4.png: 3x3 pixels, and the image has 10x8",
        "'a5': it comes twice",
    ):
        assert words in text
    rows = "".join(f"x{at},drop\n" for at in range(30))
    with pytest.raises(InputError, match="and 10 more"):
        read_corrections(write(tmp_path / "e", "id,action\n" + rows), masks, BINARY)


def test_a_weight_is_the_share_of_epochs():
    weights, rng = np.array([1.0, 0.25, 1.0, 1.0]), np.random.default_rng(0)
    orders = [drawn_again(rng.permutation(8), weights, rng) for _ in range(2000)]  # with mirrored copies
    counts = np.bincount(np.concatenate(orders), minlength=8) / 2000
    assert counts[[1, 5]] == pytest.approx([0.25, 0.25], abs=0.03)
    assert counts[[0, 2, 3]] == pytest.approx([1.25] * 3, abs=0.05)
    assert counts.sum() == pytest.approx(8)
    order = rng.permutation(4)
    shares = np.array(
        [1] * 900 + [2] * 90 + [0] * 10
    )  # a sampler that wants much of image 1 and little of image 2
    found = drawn_again(shares, np.array([0.0, 1.0, 1.0, 1.0]), rng)
    assert set(found) == {1, 2}
    assert (found == 1).sum() >= 900
    assert drawn_again(order, np.ones(4), rng) is order
    assert drawn_again(order, np.full(4, 0.5), rng) is order  # nothing of weight 1 is there to come instead
