"""``bundle --fold K`` gives the stored out-of-fold probabilities of that fold again, bit for bit, for every task."""

import numpy as np
import pytest

import masksmith as ms
from masksmith.data.store import Store
from masksmith.deploy.segmenter import Segmenter
from masksmith.project.folder import Project

SMALL = {
    "folds.count": 2,
    "folds.train": 1,
    "model.encoder": "tu-test_resnet",
    "model.encoder_weights": "none",
    "training.batch_size": 4,
    "training.threads": 1,
    "training.stages.0.epochs": 2,
    "tuning.resamples": 100,
}
SNAPSHOTS = {
    "training.stages.0.schedule": {"name": "cosine_restarts", "cycles": 2, "warmup_frac": 0.0},
    "prediction.weights": "snapshots",
    "prediction.snapshot_weights": [3, 1],
    "prediction.runtime": "openvino",  # the gate may refuse it for one of the snapshots
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("binary", {}),
        ("multiclass", {}),
        ("multilabel", {}),
        ("instances", {}),
        ("multilabel", SNAPSHOTS),
    ],
    ids=["binary", "multiclass", "multilabel", "instances", "multilabel by snapshots and openvino"],
)
def test_a_fold_comes_again_bit_for_bit(task, more, tmp_path):
    ms.example(tmp_path / "example", train=10, test=2, task=task)
    ms.compete(tmp_path / "example/data", out=tmp_path / "p", overrides=SMALL | more)
    ms.bundle(tmp_path / "p", tmp_path / "fold.msk", fold=0)
    model = Segmenter(tmp_path / "fold.msk")
    facts = model.bundle.facts.members[0]
    assert (model.task, len(facts.weights)) == (task, 2 if more else 1)
    project = Project.open(tmp_path / "p")
    stored, names = Store(next((tmp_path / "p").glob("runs/*/oof/fold_0.npy"))), list(project.folds.inside(0))
    codes = model.predict(project.cache.train_images, names)
    assert names
    for name in names:
        assert np.array_equal(codes[name], stored[name])
