"""A recipe with chains goes the whole way, and its bundle does to an image what the project did."""

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.store import Store
from masksmith.deploy.export import export_model
from masksmith.deploy.segmenter import Segmenter
from masksmith.project.folder import Project

KERNEL = "size.chain=[{name: crop, ratio: 0.9, count: 2}, {name: refract, ratio: 0.9}, {name: scale, hw: [64, 64]}]"
VALUES = "input.chain=[{name: percentile, low: 1.0, high: 99.0}, {name: clahe}, {name: gamma, gamma: 0.8}]"


def test_the_whole_way_with_chains(example, tmp_path):
    ms.compete(
        example / "data",
        out=tmp_path / "p",
        recipe="smoke",
        overrides=[KERNEL, VALUES, "training.stages.0.epochs=1", "prediction.tta=[identity, rot90]"],
    )
    ms.bundle(tmp_path / "p", tmp_path / "m.msk")
    project, model = Project.open(tmp_path / "p"), Segmenter(tmp_path / "m.msk")
    names = list(project.cache.test_images)
    stored, found = [], model.predict(project.cache.test_images, names)
    for member in model.bundle.facts.members:
        run, fold = member.name.split("/")
        stored.append(Store(tmp_path / "p/runs" / run / "test" / f"{fold.replace(' ', '_')}.npy"))
    for name in names:
        assert found[name].shape[:2] == project.cache.test_images.shape(name)
        mean = np.mean([store[name].astype(float) for store in stored], axis=0)
        assert np.abs(found[name] - mean).max() <= 1
    with pytest.raises(InputError, match=r"input\.chain: percentile, clahe look at an image's histogram"):
        export_model(tmp_path / "m.msk", tmp_path / "m.pt2", format="torch")
