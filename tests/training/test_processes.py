"""One training over two processes (gloo, on the CPU): what DDP has to do for it."""

from dataclasses import replace

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import nn

from masksmith.training.checkpoint import load_tensors, save_tensors
from masksmith.training.loop import train_step
from masksmith.training.state import TrainingState
from tests.training.tiny import TinyNet, config, make_data, same

pytestmark = pytest.mark.slow


def _group_norm_net():
    net = TinyNet(norm=False, dropout=0.0)
    net.encoder.layer1[1] = nn.GroupNorm(2, 4)  # SyncBatchNorm has no CPU kernel
    return net


def _step(fabric, folder):
    """Make one step on data of this process's own; write the weights and their average to a file of its own."""
    torch.set_num_threads(1)
    own = fabric.global_rank
    data = replace(make_data(folder / f"data_{own}"), seed=own)
    state = TrainingState(fabric, _group_norm_net(), config(), data)
    state.begin_epoch()
    train_step(state, next(state.steps_ahead()))
    save_tensors(folder / f"of_{own}_of_{fabric.world_size}.safetensors", state.tensors(), {})


def test_gradients_are_reduced_over_processes(tmp_path):
    strategy = DDPStrategy(start_method="spawn", process_group_backend="gloo")
    Fabric(accelerator="cpu", devices=2, strategy=strategy).launch(_step, tmp_path)
    _step(Fabric(accelerator="cpu", devices=1), tmp_path)
    first, second, alone = (
        load_tensors(tmp_path / f"of_{name}.safetensors")[0] for name in ("0_of_2", "1_of_2", "0_of_1")
    )
    same(first, second)
    assert first.keys() == alone.keys()  # the wrapper leaves no mark in a checkpoint
    before = _group_norm_net().state_dict()
    for name in ("model/head.weight", "average/head.weight"):
        assert not torch.allclose(first[name], before["head.weight"], atol=1e-4)  # a step was made,
        assert not torch.allclose(
            first[name], alone[name], atol=1e-4
        )  # and not on the first one's data alone
