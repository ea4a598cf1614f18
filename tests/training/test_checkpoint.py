import json

import pytest
import torch

from masksmith.core.errors import InputError
from masksmith.training.checkpoint import (
    Checkpoints,
    copy_weights,
    damage_of,
    facts_of,
    is_finished,
    load_tensors,
    save_tensors,
)


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2, 3):
        checkpoints.save(epoch, {"a": torch.full((3,), float(epoch))}, {})
    assert len(list(tmp_path.glob("*.json"))) == 2
    newest = tmp_path / "epoch_0003.safetensors"
    raw = bytearray(newest.read_bytes())
    raw[-1] ^= 1
    newest.write_bytes(raw)
    tensors, facts = checkpoints.newest()
    assert facts["epoch"] == 2
    assert tensors["a"].tolist() == [2, 2, 2]
    assert "epoch_0003.safetensors: the checksum is wrong" in caplog.text


def test_checkpoints_are_ordered_by_number_however_many_digits(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for epoch, step in ((9998, 0), (9999, 0), (9999, 999_999), (9999, 1_000_000), (10_000, 0), (100_000, 0)):
        checkpoints.save(epoch, {"a": torch.zeros(1)}, {"step": step}, step=step)
        found = checkpoints.newest()[1]
        assert (found["epoch"], found["step"]) == (epoch, step)
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == ["epoch_10000", "epoch_100000"]
    checkpoints.clear()
    assert not list(tmp_path.iterdir())


def test_checkpoint_errors(tmp_path):
    with pytest.raises(InputError, match=r"the file or its a\.json is missing"):
        load_tensors(tmp_path / "a.safetensors")
    save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)}, {})
    facts = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(facts | {"format": 99}))
    with pytest.raises(InputError, match="format 99, masksmith reads up to 1"):
        load_tensors(tmp_path / "a.safetensors")
    with pytest.raises(
        InputError, match=r"1 weights do not fit .first \['weight'\]. and 1 are unknown .first \['wait'\]"
    ):
        copy_weights(torch.nn.Linear(2, 1, bias=False), {"wait": torch.zeros(1, 2)}, where="checkpoint x")


def test_channels_last_weights_survive_a_checkpoint(tmp_path):
    layer = torch.nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    save_tensors(tmp_path / "a.safetensors", layer.state_dict(), {})
    other = torch.nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    copy_weights(other, load_tensors(tmp_path / "a.safetensors")[0], where="x")
    assert torch.equal(layer.weight, other.weight)
    assert other.weight.is_contiguous(memory_format=torch.channels_last)


def test_half_a_checkpoint_does_not_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / "epoch_0000.safetensors").write_text("its .json was removed, then the process died")
    (tmp_path / "epoch_odd.txt").write_text("not ours")
    for epoch in (1, 2, 3):
        checkpoints.save(epoch, {"a": torch.zeros(1)}, {})
    assert sorted(path.stem for path in tmp_path.glob("epoch_0*")) == ["epoch_0002"] * 2 + ["epoch_0003"] * 2
    checkpoints.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_odd.txt"]


def test_what_is_wrong_with_a_checkpoint(tmp_path):
    path = tmp_path / "final.safetensors"
    save_tensors(path, {"a": torch.zeros(2)}, {"key": "k"})
    assert damage_of(path) is None
    assert is_finished(path, "k")
    assert not is_finished(path, "other")
    assert facts_of(path)["key"] == "k"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert "final.safetensors: the checksum is wrong" in damage_of(path)
    assert not is_finished(path, "k")
    path.with_suffix(".json").write_text("{")
    assert "final.json: line 1 is not JSON" in damage_of(path)
    path.unlink()
    assert "the file or its final.json is missing" in damage_of(path)
    assert not is_finished(path, "k")


def test_a_checkpoint_without_a_key_belongs_to_nothing(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {"key": ""})
    assert not is_finished(tmp_path / "a.safetensors", "")
