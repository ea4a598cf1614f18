import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from masksmith.core.errors import InputError
from masksmith.models.config import ModelConfig
from masksmith.models.segmentation import build_model
from masksmith.recipes.recipe import load_recipe
from masksmith.training import memory
from masksmith.training.config import TrainingConfig
from masksmith.training.footprint import Footprint, prediction_footprint, training_footprint

MIB = 2**20
MEMINFO = "MemTotal:       24641472 kB\nMemFree:         1000 kB\nMemAvailable:   20480000 kB\n"


def _config(*overrides: str) -> TrainingConfig:
    base = ("training.precision=32-true", "training.device=cpu", "training.threads=1")
    return load_recipe("auto", base + overrides).training


def training_bytes(model, config, *, canvas_hw, batch_size):
    return training_footprint(model, config).bytes_at(canvas_hw, batch_size)


def prediction_bytes(model, config, *, canvas_hw, batch_size):
    return prediction_footprint(model, config).bytes_at(canvas_hw, batch_size)


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(
        encoder="resnet18", encoder_weights="none", encoder_depth=3, decoder_channels=[32, 16, 8]
    )
    return build_model(config, in_channels=1, seed=0)


# --- what there is ---


def test_meminfo_is_in_kib():
    assert memory.parse_meminfo(MEMINFO) == 20480000 * 1024
    assert memory.parse_meminfo("MemTotal: 5 kB\n") is None


def test_limits_and_statistics_are_read():
    assert memory.parse_limit("max\n") is None
    assert memory.parse_limit("1048576\n") == 1048576
    assert memory.parse_stat("anon 5\ninactive_file 7\n", "inactive_file") == 7
    assert memory.parse_stat("anon 5\n", "inactive_file") == 0


def _group(folder, limit, usage, cached, *, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip((*names, "memory.stat"), (limit, usage, cached), strict=True):
        (folder / name).write_text(f"{value}\n")


TWO = ("memory.max", "memory.current")
ONE = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def _self(root, text):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(text)


def test_the_tightest_group_above_counts_and_cached_files_can_be_had(tmp_path):
    _self(tmp_path, "0::/pod/box\n")
    base = tmp_path / "sys/fs/cgroup"
    _group(base / "pod/box", "max", 300, "inactive_file 0", names=TWO)
    _group(base / "pod", 1000, 600, "anon 1\ninactive_file 50", names=TWO)
    assert memory.cgroup_bytes(tmp_path) == 1000 - 600 + 50


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path):
    _self(tmp_path, "4:memory:/docker/of-the-host\n")
    _group(tmp_path / "sys/fs/cgroup/memory", 500, 100, "total_inactive_file 20", names=ONE)
    assert memory.cgroup_bytes(tmp_path) == 420


def test_no_groups_and_no_limits_leave_all(tmp_path):
    assert memory.cgroup_bytes(tmp_path) is None
    _self(tmp_path, "0::/x\n")
    _group(tmp_path / "sys/fs/cgroup/x", "max", 300, "inactive_file 0", names=TWO)
    assert memory.cgroup_bytes(tmp_path) is None


@pytest.mark.slow
def test_kept_memory_counts_as_available_and_a_limit_of_the_address_space_is_seen():
    code = (
        "import masksmith, resource, torch\n"
        "from masksmith.training import memory\n"
        "from masksmith.training.machine import keep_memory\n"
        "keep_memory()\n"
        "held = torch.ones(50 << 20)\n"
        "before = memory.kept_bytes()\n"
        "del held\n"
        "freed = memory.kept_bytes() - before\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), -1))\n"
        "print(freed >> 20, memory.address_bytes() >> 20, memory.available_bytes('cpu') >> 20)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    freed, address, available = map(int, done.stdout.split())
    assert 199 <= freed <= 201  # 50 Mi numbers of four bytes
    assert 250 <= address <= 300
    assert address + 199 <= available <= address + 600  # what is kept lies within the limit already


def test_available_is_no_more_than_the_machine_has():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.available_bytes("cpu") <= total


def test_where_proc_is_absent_the_pages_are_asked_for(tmp_path):
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.machine_bytes(tmp_path) <= total


def test_on_a_gpu_what_torch_holds_unused_counts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    assert memory.available_bytes("cuda") == memory.available_bytes("auto") == 1200


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"training\.device: 'tpu' is not there"):
        memory.available_bytes("tpu")


# --- what is needed ---


def _toy(**changes) -> Footprint:
    """One line falls in pixels behind another: the peak is the highest of them."""
    fields = {"state": 10, "checkpoint": 0, "hidden": 1.0}
    return Footprint(**fields | changes, fixed=np.array([1000.0, 0.0]), slope=np.array([1.0, 3.0]))


def test_the_highest_line_is_the_peak():
    ground = 32 * MIB + 10
    assert _toy().bytes_at((10, 10), 1) == ground + 1100
    assert _toy().bytes_at((10, 10), 8) == ground + 2400
    assert _toy(hidden=2.0).bytes_at((10, 10), 8) == ground + 4800


def test_a_checkpoint_counts_where_it_is_the_peak():
    assert _toy(checkpoint=100 * MIB).bytes_at((10, 10), 1) > 120 * MIB
    assert _toy(checkpoint=1).bytes_at((10, 10), 1) == _toy().bytes_at((10, 10), 1)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64, 1000])
def test_the_largest_batch_is_the_last_that_fits(batch_size):
    room = _toy().bytes_at((64, 64), batch_size)
    assert _toy().largest_batch((64, 64), room) == batch_size
    assert _toy().largest_batch((64, 64), room - 1) == batch_size - 1


def test_lines_tell_a_larger_batch_and_canvas_exactly(model):
    """What two small batches say of a larger one is what a run of that one says."""
    small = training_footprint(model, _config())
    large = training_footprint(model, _config(), batches=(6, 8))
    assert small.bytes_at((48, 32), 8) == pytest.approx(large.bytes_at((48, 32), 8), rel=1e-3)


def test_the_activations_are_those_of_the_autograd_graph(model):
    """A lower bound that is found in another way: the storages that the backward pass saves."""
    twin_input = torch.rand(4, 1, 32, 32)
    saved: dict[int, int] = {}
    parameters = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(twin_input)
    model.load_state_dict(before)
    found = training_footprint(model, _config())
    peak = (found.fixed + found.slope * 4 * 32 * 32).max()
    assert sum(saved.values()) <= peak <= 1.6 * sum(saved.values()) + 4 * _weights(model)


def _weights(model) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_weights_moments_and_average_are_counted(model):
    """AdamW keeps two numbers a trained weight, SGD one; the fourth layer of this encoder is never run."""
    weights = sum(value.numel() * value.element_size() for value in [*model.parameters(), *model.buffers()])
    unused = 4 * sum(
        value.numel()
        for name, value in model.named_parameters()
        if name.startswith(("encoder.layer3", "encoder.layer4"))
    )
    trained = 4 * _weights(model) - unused
    adamw = training_footprint(model, _config())
    sgd = training_footprint(model, _config("training.stages.0.optimizer.name=sgd"))
    assert adamw.state == 2 * weights + 2 * trained
    assert sgd.state == 2 * weights + trained
    assert prediction_footprint(model, _config()).state == weights


def test_the_model_is_left_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    training_bytes(model, _config(), canvas_hw=(64, 64), batch_size=4)
    prediction_bytes(model, _config(), canvas_hw=(64, 64), batch_size=4)
    assert torch.equal(torch.rand(3), expected)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_prediction_takes_less_than_training_and_half_precision_less_than_full(model):
    size = {"canvas_hw": (128, 128), "batch_size": 16}
    full = training_bytes(model, _config(), **size)
    half = training_bytes(model, _config("training.precision=bf16-mixed"), **size)
    assert prediction_bytes(model, _config(), **size) < half < full


@pytest.mark.slow
def test_the_estimate_is_not_below_the_truth():
    """Real steps in a process of their own; MobileNetV2 at 64x64."""
    task = {"encoder": "mobilenet_v2", "precision": "32-true", "batch_size": 16, "side": 64, "threads": 1}
    one = json.dumps(task | {"work": "training", "measure": True})
    done = subprocess.run(
        [sys.executable, "benchmarks/memory.py", "--one", one], capture_output=True, text=True, check=True
    )
    truth = json.loads(done.stdout.splitlines()[-1])["truth"] * MIB
    mobilenet = build_model(
        ModelConfig(encoder="mobilenet_v2", encoder_weights="none"), in_channels=1, seed=0
    )
    estimate = training_bytes(mobilenet, _config(), canvas_hw=(64, 64), batch_size=16)
    assert 0.9 * truth <= estimate <= 1.6 * truth


# --- refusing ---

CANVASES = [(72, 72), (72, 72), (112, 112)]


def _refuse(model, config, available, *, size=32):
    return memory.refuse_too_large(
        model,
        config,
        CANVASES,
        prediction_hw=(112, 112),
        prediction_batch_size=size,
        available=available,
    )


def test_a_plan_that_fits_is_told_in_gib(model):
    estimate = _refuse(model, _config(), 64 << 30)
    assert len(estimate.training) == 3
    assert estimate.training[0] == estimate.training[1] < estimate.training[2] == estimate.needed
    assert str(estimate).startswith("memory: about ")
    assert str(estimate).endswith("64.0 GiB available")


def test_a_batch_that_is_too_large_is_refused_with_one_that_fits(model):
    config = _config("training.batch_size=512")
    room = training_bytes(model, config, canvas_hw=(112, 112), batch_size=20)
    with pytest.raises(
        InputError, match=r"at batch 512 and 112x112, and .* GiB are available.*training\.batch_size=20$"
    ):
        _refuse(model, config, room)
    assert memory.largest_batch(model, config, canvas_hw=(112, 112), available=room) == 20
    fitting = _refuse(model, _config("training.batch_size=20"), room, size=1)
    assert fitting.needed <= room


def test_two_processes_of_a_cpu_share_its_memory(model, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    config = _config("training.batch_size=512", "training.devices=2")
    room = 2 * training_bytes(model, config, canvas_hw=(112, 112), batch_size=20)
    with pytest.raises(
        InputError,
        match=r"training in each of 2 processes needs .* at batch 256 and .*training\.batch_size=40$",
    ):
        _refuse(model, config, room)
    assert memory.largest_batch(model, config, canvas_hw=(112, 112), available=room) == 40


def test_a_stage_with_its_own_batch_size_is_named(model):
    config = _config("training.stages.2.batch_size=512")
    room = training_bytes(model, config, canvas_hw=(112, 112), batch_size=40)
    with pytest.raises(InputError, match=r"training\.stages\.2\.batch_size=40$"):
        _refuse(model, config, room)


def test_where_no_batch_fits_a_crop_is_named(model):
    room = training_bytes(model, _config(), canvas_hw=(64, 64), batch_size=2)
    with pytest.raises(InputError, match=r"set training\.crop_hw=\[64, 64\] and training\.batch_size=2$"):
        _refuse(model, _config(), room)


def test_where_nothing_fits_a_lighter_model_is_advised(model):
    with pytest.raises(InputError, match=r"not even a crop fits; take a lighter model"):
        _refuse(model, _config(), 10 * MIB)


def test_a_prediction_that_is_too_large_is_refused(model):
    room = training_bytes(model, _config(), canvas_hw=(112, 112), batch_size=32)
    with pytest.raises(
        InputError, match=r"prediction\.batch_size: prediction needs .* at batch 5000 .*=\d+$"
    ):
        _refuse(model, _config(), room, size=5000)
    tiny = _config("training.batch_size=1")
    with pytest.raises(InputError, match=r"not even one image fits; take a lighter model"):
        memory.refuse_too_large(
            model,
            tiny,
            [(16, 16)] * 3,
            prediction_hw=(4096, 4096),
            prediction_batch_size=1,
            available=training_bytes(model, tiny, canvas_hw=(16, 16), batch_size=1),
        )
