"""Several devices for a fold: no part of what a run is, and the followers train what the leader does."""

import sys
from contextlib import contextmanager

import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.project.runs import with_free_parts
from masksmith.recipes.recipe import load_recipe
from masksmith.steps import follow
from masksmith.steps import train as train_steps
from masksmith.training.machine import make_fabric

GROUP_NORM = ("model.norm=group", "model.encoder_norm=group", "training.stages.0.epochs=1")


def test_the_number_of_devices_is_no_part_of_a_run():
    one, two = load_recipe("smoke"), load_recipe("smoke", ("training.devices=2",))
    assert one.hash == two.hash
    assert str(one.training) == str(two.training)  # the key of a training on all images
    assert with_free_parts(one, two).training.devices == 2
    assert with_free_parts(two, one) == one
    small = load_recipe("smoke", ("training.batch_size=7",))
    with pytest.raises(InputError, match=r"training.devices: 2 cannot share batches of 7 images"):
        with_free_parts(small, two)
    with pytest.raises(InputError, match=r"training: devices: 3 cannot share batches of 8 images"):
        load_recipe("smoke", ("training.devices=3",))


@pytest.mark.slow
def test_a_follower_trains_what_the_leader_does(project, tmp_path, monkeypatch):
    commands, followed = [], []

    @contextmanager
    def leading(config, command):
        commands.append(command)
        yield make_fabric(config)

    @contextmanager
    def following(config, folder, rank):
        followed.append((config.devices, folder, rank))
        yield make_fabric(config)

    def note(side):
        return lambda _fabric, model, config, data, **more: sides.append(
            (side, model, config, data, more["folder"])
        )

    sides = []
    monkeypatch.setattr(train_steps, "leading", leading)
    monkeypatch.setattr(train_steps, "following", following)
    monkeypatch.setattr(train_steps, "train_fold", note("leader"))
    monkeypatch.setattr(train_steps, "follow_fold", note("follower"))
    ms.train(project, recipe="smoke", overrides=["training.devices=2", *GROUP_NORM])
    (command,) = commands
    assert command[:3] == [sys.executable, "-m", "masksmith.steps.follow"]
    assert follow.main(*command[3:], str(tmp_path), "1") == 0
    (_, net, config, data, folder), (side, other_net, other_config, other_data, other_folder) = sides
    assert (side, followed) == ("follower", [(2, tmp_path, 1)])
    assert (config, folder, data.key) == (other_config, other_folder, other_data.key)
    assert (data.ids, data.seed, data.fold) == (other_data.ids, other_data.seed, other_data.fold)
    assert all((one == two).all() for one, two in zip(net.parameters(), other_net.parameters(), strict=True))

    monkeypatch.setattr(
        train_steps, "follow_fold", lambda *_, **__: make_fabric(config.model_copy(update={"device": "x"}))
    )
    assert follow.main(*command[3:], str(tmp_path), "1") == 2
    assert "'x' is not there" in (tmp_path / "refused_1").read_text()
