"""What is made of the forms in which well-known public sets lie on a disk, each with a few generated pictures."""

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from masksmith.core.errors import InputError
from masksmith.data.cache import build_cache
from masksmith.data.layouts import read_catalog

SIZE = (40, 48)
ONE, TWO, NONE = (12, 12), (30, 36), (1, 46)
"""Pixels of the class 1, of the class 2, and of the background, in every picture."""
NUMBER = 4
RED_GREEN = np.array([[0, 0, 0], [0, 255, 0], [255, 0, 0]], np.uint8)


class Put:
    """Writes the files of a form, and makes pictures with two objects in them."""

    def __init__(self, root):
        self.root, self.drawn = root, np.random.default_rng(0)
        self.map = np.zeros(SIZE, np.uint8)
        self.map[6:18, 6:18], self.map[24:36, 30:42] = 1, 2

    def file(self, path, text=""):
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def table(self, path, *rows):
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("w", newline="") as file:
            csv.writer(file).writerows(rows)

    def mask(self, path, values):
        """Write a mask: whether there is foreground, or the values."""
        values = np.asarray(values)
        values = values.astype(np.uint8) * 255 if values.dtype == bool else values
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix in (".tif", ".tiff"):
            tifffile.imwrite(place, values)
        else:
            Image.fromarray(values).save(place)

    def image(self, *paths):
        """Write a picture of its own, in each of the formats."""
        coarse = self.drawn.uniform(60, 200, (5, 6, 3)).astype(np.float32)
        picture = (
            cv2.resize(coarse, SIZE[::-1]) + 20 * self.map[..., None] + self.drawn.normal(0, 6, (*SIZE, 3))
        )
        for path in paths:
            self.mask(path, picture.clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Form:
    """What is right of a form."""

    build: Callable[[Put, int], None]
    """Writes the files of one number, with those of the set where it is 0."""
    task: str = "binary"
    train: int = NUMBER
    test: int = 0
    classes: list[str] | None = None
    at: tuple[int, int, int] = (1, 0, 0)
    """Classes at ONE, TWO and NONE; of several labels and of objects, whether there is something."""
    says: list[str] = field(default_factory=list)
    """What findings say."""


def drive(put, k):
    for name, split in (("training", "training"), ("test", "test")):
        put.image(f"{split}/images/{k}_{name}.tif")
        put.mask(f"{split}/1st_manual/{k}_manual1.gif", put.map == 1)
        put.mask(f"{split}/mask/{k}_{name}_mask.gif", np.ones(SIZE, bool))
    put.mask(f"test/2nd_manual/{k}_manual2.gif", put.map == 2)


def chase_db1(put, k):
    put.image(f"Image_{k:02}L.jpg")
    put.mask(f"Image_{k:02}L_1stHO.png", put.map == 1)
    put.mask(f"Image_{k:02}L_2ndHO.png", put.map == 2)


def stare(put, k):
    put.image(f"stare-images/im{k:04}.ppm")
    put.mask(f"labels-ah/im{k:04}.ah.ppm", np.repeat((put.map == 1)[..., None], 3, axis=2))
    put.mask(f"labels-vk/im{k:04}.vk.ppm", np.repeat((put.map == 2)[..., None], 3, axis=2))


def crack500(put, k):
    for split in ("train", "test"):
        put.image(f"{split}crop/2016_{k}.jpg")
        put.mask(f"{split}crop/2016_{k}.png", put.map == 1)


def deepcrack(put, k):
    for split in ("train", "test"):
        put.image(f"{split}_img/11{k}.jpg")
        put.mask(f"{split}_lab/11{k}.png", put.map == 1)


def cwfid(put, k):
    put.image(f"images/{k:03}_image.png")
    put.mask(f"masks/{k:03}_mask.png", put.map == 0)
    put.mask(f"annotations/{k:03}_annotation.png", RED_GREEN[put.map])


def sugar_beets(put, k):
    put.image(f"day1/images/rgb/frame{k}.png")
    put.mask(f"day1/images/nir/frame{k}.png", put.drawn.integers(0, 255, SIZE).astype(np.uint8))
    put.mask(f"day1/annotations/dlp/iMapCleaned/frame{k}_GroundTruth_iMap.png", put.map)
    put.mask(f"day1/annotations/dlp/colorCleaned/frame{k}_GroundTruth_color.png", RED_GREEN[put.map])


def phenobench(put, k):
    for split in ("train", "test"):
        put.image(f"{split}/images/{k}_{split}.png")
    put.mask(f"train/semantics/{k}_train.png", put.map)
    for name in ("plant_instances", "leaf_instances", "plant_visibility"):
        put.mask(f"train/{name}/{k}_train.png", put.map.astype(np.uint16) * 9)


def glas(put, k):
    for name in (f"train_{k}", f"testA_{k}"):
        put.image(f"Warwick/{name}.bmp")
        objects = put.map.copy()
        for at in range(3, 8 + k):
            objects[38:40, 4 * at - 12 : 4 * at - 9] = at
        put.mask(f"Warwick/{name}_anno.bmp", objects)


def clinic_db(put, k):
    put.image(f"TIF/Original/{k}.tif", f"PNG/Original/{k}.png")
    for kind in ("TIF", "PNG"):
        put.mask(f"{kind}/Ground Truth/{k}.{kind.lower()}", put.map == 1)
    rows = [
        [i, *(f"{f}/{d}/{i}.{f.lower()}" for f in ("TIF", "PNG") for d in ("Original", "Ground Truth"))]
        for i in range(4)
    ]
    put.table(
        "metadata.csv", ["id", "tif_image_path", "tif_mask_path", "png_image_path", "png_mask_path"], *rows
    )


def isic_2017(put, k):
    put.image(f"ISIC-2017_Training_Data/ISIC_{k}.jpg")
    put.mask(f"ISIC-2017_Training_Data/ISIC_{k}_superpixels.png", put.map)
    put.mask(f"ISIC-2017_Training_Part1_GroundTruth/ISIC_{k}_segmentation.png", put.map == 1)


def isic_attributes(put, k):
    put.image(f"ISIC2018_Training_Input/ISIC_{k}.jpg")
    for label, value in (("globules", 1), ("milia_like_cyst", 2), ("streaks", 3)):
        put.mask(f"ISIC2018_Training_GroundTruth/ISIC_{k}_attribute_{label}.png", put.map == value)


def busi(put, k):
    put.image(f"benign/benign ({k}).png")
    put.mask(f"benign/benign ({k})_mask.png", put.map == 1)
    put.mask(f"benign/benign ({k})_mask_1.png", put.map == 2)


def montgomery(put, k):
    put.image(f"CXR_png/MCUCXR_{k}_0.png")
    put.mask(f"ManualMask/leftMask/MCUCXR_{k}_0.png", put.map == 1)
    put.mask(f"ManualMask/rightMask/MCUCXR_{k}_0.png", put.map == 2)


def shenzhen(put, k):
    name, behind = (f"CHNCXR_{k}", "_mask") if k % 2 else (f"MCUCXR_{k}", "")
    put.image(f"Lung Segmentation/CXR_png/{name}.png")
    put.mask(f"Lung Segmentation/masks/{name}{behind}.png", put.map == 1)
    put.image(f"Lung Segmentation/test/CHNCXR_{k}0.png")


def cell_tracking(put, k):
    for sequence in ("01", "02"):
        put.image(f"GOWT1/{sequence}/t{k:03}.tif")
        put.mask(f"GOWT1/{sequence}_GT/SEG/man_seg{k:03}.tif", put.map)
        put.mask(f"GOWT1/{sequence}_GT/TRA/man_track{k:03}.tif", (put.map == 2).astype(np.uint8))


def pets(put, k):
    put.image(f"images/Abyssinian_{k}.jpg")
    put.mask(f"annotations/trimaps/Abyssinian_{k}.png", put.map + 1)
    put.file(f"annotations/trimaps/._Abyssinian_{k}.png", "Mac OS X")
    put.file(f"annotations/xmls/Abyssinian_{k}.xml", "<annotation/>")


def camvid(put, k):
    for split in ("train", "test"):
        put.image(f"{split}/{k}{split[1]}.png")
        put.mask(f"{split}_labels/{k}{split[1]}_L.png", RED_GREEN[put.map])
    put.file("class_dict.csv", "name,r,g,b\nVoid,0,0,0\nCar,255,0,0\nTree,0,255,0\n")


def mapillary(put, k):
    for split in ("training", "testing"):
        put.image(f"{split}/images/{k}{split[1]}.jpg")
    put.mask(f"training/v1.2/labels/{k}r.png", put.map)
    put.mask(f"training/v1.2/panoptic/{k}r.png", RED_GREEN[put.map])


def kitti_semantic(put, k):
    for split in ("training", "testing"):
        put.image(f"{split}/image_2/{k:06}_10.png")
    put.mask(f"training/semantic/{k:06}_10.png", put.map)
    put.mask(f"training/instance/{k:06}_10.png", put.map.astype(np.uint16) * 256)
    put.mask(f"training/semantic_rgb/{k:06}_10.png", RED_GREEN[put.map])


def human_parsing(put, k):
    for split in ("train", "val"):
        put.image(f"TrainVal_images/{split}_images/{k}{split}.jpg")
        put.mask(f"TrainVal_parsing_annotations/{split}_segmentations/{k}{split}.png", put.map)
    put.image(f"Testing_images/testing_images/{k}test.jpg")


def duts(put, k):
    for split in ("TR", "TE"):
        put.image(f"DUTS-{split}/DUTS-{split}-Image/n{k}.jpg")
        put.mask(f"DUTS-{split}/DUTS-{split}-Mask/n{k}.png", put.map == 1)


def deepglobe_roads(put, k):
    for split in ("train", "valid"):
        put.image(f"{split}/{k}{split[0]}_sat.jpg")
    put.mask(f"train/{k}t_mask.png", put.map == 1)
    rows = [[f"train/{i}t_sat.jpg", f"train/{i}t_mask.png", "train"] for i in range(NUMBER)]
    rows += [[f"valid/{i}v_sat.jpg", "", "valid"] for i in range(NUMBER)]
    put.table("metadata.csv", ["sat_image_path", "mask_path", "split"], *rows)


def agriculture_vision(put, k):
    put.image(f"train/images/rgb/A{k}.jpg")
    put.mask(f"train/images/nir/A{k}.jpg", put.map * 90)
    for label, value in (("double_plant", 1), ("waterway", 2)):
        put.mask(f"train/labels/{label}/A{k}.png", put.map == value)
    for name in ("boundaries", "masks"):
        put.mask(f"train/{name}/A{k}.png", np.ones(SIZE, bool))


def roboflow_masks(put, k):
    for split in ("train", "test"):
        put.image(f"{split}/{k}_jpg.rf.ab{k}.jpg")
        put.mask(f"{split}/{k}_jpg.rf.ab{k}_mask.png", put.map)
        put.file(f"{split}/_classes.csv", "Pixel Value, Class\n0, soil\n1, crop\n2, weed\n")


def nerves(put, k):
    put.image(f"train/1_{k}.tif")
    put.mask(f"train/1_{k}_mask.tif", put.map == 1)
    put.image(f"test/{k}.tif")
    put.table("sample_submission.csv", ["img", "pixels"], *([i, "1 1"] for i in range(NUMBER)))


def severstal(put, k):
    put.image(f"train_images/a{k}.jpg")
    put.image(f"test_images/b{k}.jpg")
    row = f"{12 * SIZE[0] + 8} 8"  # of column 12
    put.table(
        "train.csv",
        ["ImageId", "ClassId", "EncodedPixels"],
        *([f"a{i}.jpg", 1 + i % 2, row] for i in range(4)),
    )
    sample = ([f"b{i}.jpg", "1 1", 0] for i in range(NUMBER))
    put.table("sample_submission.csv", ["ImageId", "EncodedPixels", "ClassId"], *sample)


MULTICLASS, BOTH = "multiclass", (1, 2, 0)
FORMS = {
    "DRIVE": Form(drive, test=4, says=[r"mask/ holds 4 masks .* \(masks: \"\*/mask/\{id\}_mask.gif\"\)"]),
    "CHASE_DB1": Form(chase_db1, says=["ID_2ndHO"]),
    "STARE": Form(stare, says=["labels-vk/ holds 4 masks"]),
    "Crack500": Form(crack500, test=4),
    "DeepCrack": Form(deepcrack, test=4),
    "CWFID": Form(cwfid, MULTICLASS, at=BOTH, says=["masks/ holds 4 masks"]),
    "sugar beets": Form(
        sugar_beets, MULTICLASS, at=BOTH, says=["colorCleaned/ holds 4 masks", "nir/ holds 4 images"]
    ),
    "PhenoBench": Form(phenobench, MULTICLASS, test=4, at=BOTH, says=["plant_instances/"]),
    "GlaS": Form(glas, "instances", test=4, at=(1, 1, 0)),
    "CVC-ClinicDB": Form(clinic_db),
    "ISIC 2017": Form(isic_2017, says=["4 pictures are called as an image"]),
    "ISIC 2018, task 2": Form(
        isic_attributes,
        "multilabel",
        classes=["globules", "milia_like_cyst", "streaks"],
        at=(1, 1, 0),
        says=["3 labels that may overlap"],
    ),
    "BUSI": Form(busi, at=(1, 1, 0), says=["4 images have 4 further masks"]),
    "Montgomery": Form(montgomery, "multilabel", classes=["leftMask", "rightMask"], at=(1, 1, 0)),
    "Shenzhen": Form(shenzhen, test=4),
    "Cell Tracking Challenge": Form(cell_tracking, MULTICLASS, train=8, at=BOTH, says=["01_GT/TRA/"]),
    "Oxford pets": Form(pets, MULTICLASS, classes=["0", "1", "2", "3"], at=(2, 3, 1)),
    "CamVid": Form(camvid, MULTICLASS, test=4, classes=["Void", "Car", "Tree"], at=(2, 1, 0)),
    "Mapillary": Form(mapillary, MULTICLASS, test=4, at=BOTH, says=["panoptic/"]),
    "KITTI": Form(kitti_semantic, MULTICLASS, test=4, at=BOTH, says=["semantic_rgb/ holds 4 masks"]),
    "LIP": Form(human_parsing, MULTICLASS, train=8, test=4, at=BOTH),
    "DUTS": Form(duts, test=4),
    "DeepGlobe": Form(deepglobe_roads, test=4, says=["4 images of val have no masks"]),
    "Agriculture-Vision": Form(
        agriculture_vision, "multilabel", classes=["double_plant", "waterway"], at=(1, 1, 0)
    ),
    "Roboflow": Form(roboflow_masks, MULTICLASS, test=4, classes=["soil", "crop", "weed"], at=BOTH),
    "nerves": Form(nerves, test=4),
    "Severstal": Form(severstal, "multilabel", test=4, classes=["1", "2"], says=["placeholder"]),
}


@pytest.mark.parametrize("name", FORMS)
def test_known_form(tmp_path, name):
    form = FORMS[name]
    put = Put(tmp_path / "data")
    for k in range(NUMBER):
        form.build(put, k)
    catalog = read_catalog(tmp_path / "data")
    cache = build_cache(catalog, tmp_path / "cache")
    assert (len(catalog.train), len(catalog.test), cache.target.task) == (form.train, form.test, form.task)
    if form.classes is not None:
        assert (catalog.labels or list(cache.target.classes)) == form.classes
    for sample in catalog.train:
        mask = cache.train_masks[sample.id]
        assert cache.train_images[sample.id].shape == (*SIZE, 3)
        found = [int(mask[at].max()) for at in (ONE, TWO, NONE)]
        assert ([min(one, 1) for one in found] if form.task == "instances" else found) == list(form.at)
    told = "\n".join([*map(str, catalog.findings), *catalog.left_out, catalog.submission.doubt])
    for pattern in form.says:
        assert re.search(pattern, told), told


def test_annotations_of_other_kinds_are_named_where_masks_are_missed(tmp_path):
    put = Put(tmp_path)
    put.image("RGB-PanSharpen/img1.tif")
    put.file("geojson/buildings/buildings_img1.geojson", '{"type": "FeatureCollection", "features": []}')
    with pytest.raises(InputError, match=r"no masks that are read: 1 files of map vectors .*dataset\.yaml"):
        read_catalog(tmp_path)


def test_pictures_that_are_called_alike_and_have_masks_are_kept(tmp_path):
    put = Put(tmp_path)
    for name in ("1", "1_flip", "2", "2_flip"):
        put.image(f"images/{name}.png")
        put.mask(f"masks/{name}.png", put.map == 1)
    assert len(read_catalog(tmp_path).train) == 4


def test_a_cut_netpbm_file_is_refused(tmp_path):
    put = Put(tmp_path)
    put.image("images/1.ppm")
    put.mask("masks/1.pgm", put.map == 1)
    raw = (tmp_path / "images/1.ppm").read_bytes()
    (tmp_path / "images/1.ppm").write_bytes(raw[: len(raw) // 4])
    with pytest.raises(InputError, match=r"images/1\.ppm.*cut off"):
        build_cache(read_catalog(tmp_path), tmp_path / "cache")
