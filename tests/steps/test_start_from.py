"""Trainings that start from the weights of another project, a bundle or a file."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.models.segmentation import build_model
from masksmith.project.folder import Project
from masksmith.recipes.recipe import load_recipe
from masksmith.steps.start_from import take
from masksmith.training.config import TrainingConfig
from masksmith.training.origin import origin_files, origin_hash

STILL = ["training.stages.0.epochs=1", "training.stages.0.optimizer.lr=1e-12", "folds.train=1"]


def net(*overrides, in_channels=1, classes=1, seed=0):
    config = load_recipe("smoke", overrides).model
    return build_model(
        config, in_channels=in_channels, seed=seed, classes=classes, exclusive=classes > 1, load_weights=False
    )


def test_all_but_the_head_and_the_bands_is_taken():
    old, new = net(in_channels=4), net(in_channels=2, classes=5, seed=1)
    said = take(new, old.state_dict(), where="there")
    stem = "encoder.conv1.weight" if "encoder.conv1.weight" in new.state_dict() else said.spread[0]
    assert said.spread == [stem]
    assert sorted(said.other_shape) == ["head.bias", "head.weight", "mean", "std"]
    assert not said.missing
    assert not said.unused
    torch.testing.assert_close(
        new.state_dict()[stem].sum(1), old.state_dict()[stem].sum(1)
    )  # an image whose bands are alike gives what it gave
    for name in said.taken:
        assert torch.equal(new.state_dict()[name], old.state_dict()[name]), name
    assert str(said).startswith(
        f"{len(said.taken) + 1} of {len(new.state_dict())} tensors taken; of these {stem}"
    )


def test_a_net_that_is_the_same_is_taken_whole_with_its_normalisation():
    old, new = net(), net(seed=1)
    old.mean += 0.25
    assert len(take(new, old.state_dict(), where="there").taken) == len(new.state_dict())
    assert torch.equal(new.mean, old.mean)
    measured = net(seed=1)
    take(measured, old.state_dict(), where="there", measured=True)
    assert not torch.equal(measured.mean, old.mean)


def test_another_encoder_is_refused_with_counts():
    with pytest.raises(InputError, match=r"there: \d+ of the \d+ tensors of the encoder do not fit: \d+"):
        take(net("model.encoder=resnet18"), net("model.encoder=mobilenet_v2").state_dict(), where="there")


def test_the_folds_start_from_another_project_and_the_source_may_go(trained, tmp_path, caplog):
    ms.example(tmp_path / "new", train=20, test=4, seed=5)
    source = shutil.copytree(trained, tmp_path / "source")
    with caplog.at_level(logging.INFO, "masksmith"):
        ms.compete(
            tmp_path / "new/data",
            out=tmp_path / "p",
            recipe="smoke",
            overrides=[*STILL, f"training.start_from={source}"],
        )
    assert "tensors taken" in caplog.text
    assert "these very images" not in caplog.text
    project = Project.open(tmp_path / "p")
    run = project.run()
    assert run.recipe.training.start_from_hash == origin_hash(str(source))
    begun = project.run(run.recipe.training.start_run)
    old = load_file(origin_files(str(source))[0])
    for name, value in load_file(begun.final(0)).items():
        assert torch.equal(value, old[name]), name
    drift = load_file(run.final(0))
    weights = [name for name in drift if name.endswith("weight")]
    assert all(torch.allclose(drift[name], old[name], atol=1e-6) for name in weights)  # not trained at all
    assert len(json.loads((begun.path / "taken.json").read_text())["taken"]) == len(old)
    shutil.rmtree(source)
    ms.predict(tmp_path / "p")
    with pytest.raises(InputError, match="no such file or folder; expected a bundle"):
        ms.compete(
            tmp_path / "new/data",
            out=tmp_path / "p",
            recipe="smoke",
            overrides=[f"training.start_from={source}"],
        )


def test_a_bundle_of_the_same_images_is_said(trained, example, tmp_path, caplog):
    ms.bundle(trained, tmp_path / "m.msk")
    start = f"training.start_from={tmp_path / 'm.msk'}"
    with caplog.at_level(logging.WARNING, "masksmith"):
        ms.train(shutil.copytree(trained, tmp_path / "p"), recipe="smoke", overrides=[*STILL, start])
    assert "these very images" in caplog.text
    run = Project.open(tmp_path / "p").run()
    changed = run.recipe.model_copy(
        update={
            "training": run.recipe.training.model_copy(
                update={"start_run": None, "start_from_hash": "0" * 40}
            )
        }
    )
    (tmp_path / "r.yaml").write_text(changed.to_yaml())
    with pytest.raises(InputError, match=r"start_from_hash: 0000.*give the same weights"):
        ms.train(tmp_path / "p", recipe=str(tmp_path / "r.yaml"))


def test_what_cannot_be_started_from_is_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"0")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"the file ends in '.pth'; expected a bundle.*masksmith convert"):
        origin_files(str(tmp_path / "w.pth"))
    with pytest.raises(InputError, match="has no trained fold"):
        origin_files(str(tmp_path / "empty"))
    recipe = load_recipe("smoke")
    values = recipe.training.model_dump(mode="json") | {"start_from": "a.msk", "start_run": "b"}
    with pytest.raises(ValueError, match="a training starts from one of them"):
        TrainingConfig.model_validate_json(json.dumps(values))
    save_file({"head.bias": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="with a budget that itself chooses the net"):
        ms.compete(
            tmp_path,
            out=tmp_path / "p",
            budget="1m",
            overrides=[f"training.start_from={tmp_path / 'w.safetensors'}"],
        )


def test_a_damaged_file_and_another_net_are_refused_before_training(project, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    start = f"training.start_from={tmp_path / 'w.safetensors'}"
    with pytest.raises(InputError, match="not a whole safetensors file"):
        ms.train(project, recipe="smoke", overrides=[start])
    save_file({"head.bias": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"tensors of the encoder do not fit"):
        ms.train(project, recipe="smoke", overrides=[start])
