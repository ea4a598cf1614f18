import argparse
import collections
import os
import pickle
import zipfile

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import masksmith as ms
from masksmith import cli
from masksmith.core.errors import InputError
from masksmith.models.config import ModelConfig, is_safetensors
from masksmith.models.convert import common_prefix, convert_checkpoint
from masksmith.models.segmentation import build_model

STATE = {"conv1.weight": torch.arange(6.0).view(2, 3), "bn.num_batches_tracked": torch.tensor(4)}


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def saved(tmp_path, content, name="a.pth", **options):
    torch.save(content, tmp_path / name, **options)
    return tmp_path / name


def convert(tmp_path, content, **options):
    done = convert_checkpoint(saved(tmp_path, content), tmp_path / "out.safetensors", **options)
    return done, load_file(tmp_path / "out.safetensors")


def assert_state(found, expected=STATE):
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def under(prefix, state=STATE):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path, legacy, protocol):
    mark = tmp_path / "made"
    path = saved(
        tmp_path,
        {"state_dict": STATE, "extra": Evil(mark)},
        _use_new_zipfile_serialization=not legacy,
        pickle_protocol=protocol,
    )
    with pytest.raises(InputError, match=r"a\.pth: ") as caught:
        convert_checkpoint(path, tmp_path / "out.safetensors")
    if protocol == 2:
        assert "reading it would run code: it calls for 'posix.system'" in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's own text says how to switch the safety off
    assert not mark.exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_a_bare_pickle_is_not_run(tmp_path):
    mark = tmp_path / "made"
    (tmp_path / "a.bin").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(InputError, match=r"not a checkpoint that can be read safely \(pickle code 149\)"):
        convert_checkpoint(tmp_path / "a.bin", tmp_path / "out.safetensors")
    assert not mark.exists()


def test_the_environment_cannot_switch_the_safety_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(InputError, match=r"calls for 'posix\.system'"):
        convert_checkpoint(saved(tmp_path, [Evil(tmp_path / "made")]), tmp_path / "out.safetensors")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"w": torch.ones(1), "args": argparse.Namespace(lr=1)}, r"argparse\.Namespace"),
        (nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
        ({"w": torch.ones(1), "best": np.float64(3)}, r"numpy\._core\.multiarray\.scalar"),
    ],
)
def test_the_name_that_is_called_for_is_said(tmp_path, content, name):
    with pytest.raises(InputError, match=f"it calls for '{name}'"):
        convert(tmp_path, content)


def test_torchscript_is_refused(tmp_path):
    class One(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.save(torch.jit.script(One()), tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: a TorchScript archive, which holds code"):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "out.safetensors")


def test_another_refusal_of_the_safe_reader(tmp_path):
    raw = b"\x80\x02ccollections\nOrderedDict\nq\x00.X"  # a class in the place of a value
    (tmp_path / "a.pth").write_bytes(b"\x80\x02]q\x00K\x01K\x02s.")  # an item set in a list
    with pytest.raises(InputError, match=r"read safely \(.*Can only SETITEM for dict"):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "out.safetensors")
    (tmp_path / "a.pth").write_bytes(raw)
    with pytest.raises(InputError, match=r"a\.pth: "):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    "wrapper", ["state_dict", "model_state_dict", "model", "net", "ema", "module", "encoder"]
)
def test_wrappers(tmp_path, wrapper):
    done, found = convert(tmp_path, {"epoch": 3, wrapper: STATE})
    assert_state(found)
    assert (done.wrapper, done.left_out, done.tensors) == (wrapper, ("epoch",), 2)
    assert done.num_bytes == (tmp_path / "out.safetensors").stat().st_size


def test_wrappers_within_wrappers_and_an_optimizer(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 7,
        "optimizer": optimizer.state_dict(),
        "model": {"state_dict": model.state_dict(), "version": "1"},
        "step": torch.tensor(1),
    }
    done, found = convert(tmp_path, content)
    assert_state(found, dict(model.state_dict()))
    assert done.wrapper == "model.state_dict"
    assert set(done.left_out) == {"epoch", "optimizer", "step", "model.version"}
    text = str(done)
    assert "2 tensors" in text
    assert "taken from: model.state_dict" in text
    assert "left out: 4 entries (epoch, optimizer, step, model.version)" in text


def test_a_plain_state_dict_with_other_values(tmp_path):
    done, found = convert(tmp_path, collections.OrderedDict(STATE, arch="resnet"))
    assert_state(found)
    assert (done.wrapper, done.prefix, done.left_out) == ("", "", ("arch",))
    assert "taken from: the top of the file" in str(done)
    assert "prefix taken off: none" in str(done)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "encoder.", "backbone.", "module.model."]
)
def test_prefixes(tmp_path, prefix):
    done, found = convert(tmp_path, {"state_dict": under(prefix)})
    assert_state(found)
    assert done.prefix == prefix


def test_a_prefix_that_not_all_names_carry_stays():
    assert common_prefix(["encoder.a", "decoder.b"]) == ""
    assert common_prefix(["backbone.a", "backbone.b", "fc.weight"]) == "backbone."
    assert common_prefix(["module.backbone.a", "module.fc.weight"]) == "module.backbone."
    assert common_prefix(["encoder.fc.a", "fc.a", "encoder.b"]) == ""  # two names would become one
    assert common_prefix(["fc.weight"]) == ""


def test_data_parallel_itself(tmp_path):
    model = smp.encoders.get_encoder("resnet18", weights=None, depth=4)
    done, _ = convert(tmp_path, {"state_dict": nn.DataParallel(model).state_dict()})
    assert done.prefix == "module."


@pytest.mark.parametrize(
    ("encoder", "legacy"), [("resnet18", False), ("mobilenet_v2", True), ("tu-resnet10t", False)]
)
def test_converted_weights_load_into_a_model(tmp_path, encoder, legacy):
    if encoder.startswith("tu-"):
        own = timm.create_model(encoder.removeprefix("tu-"), pretrained=False).state_dict()
    else:
        own = smp.encoders.get_encoder(encoder, weights=None).state_dict()
    content = {"state_dict": under("module.", own), "optimizer": {"lr": 0.1}}
    source = saved(tmp_path, content, _use_new_zipfile_serialization=not legacy)
    ms.convert(source, tmp_path / "w.safetensors")
    config = ModelConfig(encoder=encoder, encoder_weights=str(tmp_path / "w.safetensors"))
    loaded = build_model(config, in_channels=3, seed=0).state_dict()
    found = [
        (value, own[name.removeprefix("encoder.").removeprefix("model.")])
        for name, value in loaded.items()
        if name.startswith("encoder.")
    ]
    assert len(found) > 50
    assert all(torch.equal(value, expected) for value, expected in found)


def test_one_part_of_a_whole_network(tmp_path):
    content = {**under("encoder."), **under("decoder.")}
    done, found = convert(tmp_path, content, only="encoder.")
    assert_state(found)
    assert done.prefix == "encoder."
    assert done.left_out == tuple(under("decoder."))
    with pytest.raises(
        InputError, match=r"no weight begins with 'head\.'; the names begin with decoder\., encoder\."
    ):
        convert(tmp_path, content, only="head.", force=True)


def test_a_named_entry(tmp_path):
    content = {"state_dict": {"w": torch.zeros(1)}, "teacher": {"ema": STATE}, "epoch": 1}
    done, found = convert(tmp_path, content, key="teacher.ema")
    assert_state(found)
    assert done.left_out == ("state_dict", "epoch")
    for key, message in (
        ("tcher", r"no entry 'tcher' \(--key tcher\); did you mean 'teacher'"),
        ("epoch", "--key epoch is int; expected a table of tensors"),
        ("epoch.x", "no entry 'x'"),
    ):
        with pytest.raises(InputError, match=message.replace("(", "(")):
            convert(tmp_path, content, key=key, force=True)


def test_shared_strided_and_trained_tensors(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    content = {
        "a": base,
        "b": base.t(),
        "c": base[:, 1],
        "d": nn.Parameter(base),
        "e": torch.zeros(2, 3, 4, 5),
    }
    content["e"] = content["e"].to(memory_format=torch.channels_last)
    _, found = convert(tmp_path, content)
    assert_state(found, content)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool])
def test_types_stay(tmp_path, dtype):
    _, found = convert(tmp_path, {"w": torch.ones(3, dtype=dtype)})
    assert found["w"].dtype == dtype


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "no weights found; .* it holds list"),
        ({"epoch": 1, "lr": 0.1}, "no weights found; .* it holds 'epoch', 'lr'"),
        ({}, "no weights found; .* it holds dict"),
        (
            {"w": torch.eye(3).to_sparse()},
            "the weight 'w' is torch.float32, torch.sparse_coo; expected dense numbers",
        ),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "the weight 'w' is torch.complex64"),
        ({"w": torch.empty(2, device="meta")}, "the weight 'w' is without data"),
        ({3: torch.ones(2)}, "the weight 3 has no text for a name"),
        ({"w": torch.zeros(1).expand(10**12)}, r"unfold to 4,000,000,000,000 bytes from a file of \d"),
    ],
)
def test_what_cannot_be_converted(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        convert(tmp_path, content)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_table_that_holds_itself(tmp_path):
    content = {"epoch": 1}
    content["model"] = content
    with pytest.raises(InputError, match="no weights found"):
        convert(tmp_path, content)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("left", [1, 60, 2000, -100])
def test_damaged_files(tmp_path, left, legacy):
    path = saved(tmp_path, {"w": torch.rand(3000)}, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match=r"a\.pth: not a (whole )?checkpoint"):
        convert_checkpoint(path, tmp_path / "out.safetensors")


@pytest.mark.parametrize("raw", [b"hello, world" * 9, b"\x89PNG\r\n\x1a\n" + bytes(99), bytes(500)])
def test_not_a_checkpoint(tmp_path, raw):
    (tmp_path / "a.pth").write_bytes(raw)
    with pytest.raises(InputError, match=r"a\.pth: not a (whole )?checkpoint"):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "out.safetensors")


def test_a_compressed_archive(tmp_path):
    source = saved(tmp_path, {"w": torch.zeros(100_000)})
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    with pytest.raises(
        InputError, match=r"b\.pth: its member 'a/data\.pkl' is compressed, which torch\.save never"
    ):
        convert_checkpoint(tmp_path / "b.pth", tmp_path / "out.safetensors")


def test_paths(tmp_path):
    source, target = saved(tmp_path, STATE), tmp_path / "out.safetensors"
    with pytest.raises(InputError, match=r"gone\.pth: no such file"):
        convert_checkpoint(tmp_path / "gone.pth", target)
    with pytest.raises(InputError, match="no such file"):
        convert_checkpoint(tmp_path, target)
    (tmp_path / "empty.pth").touch()
    with pytest.raises(InputError, match=r"empty\.pth: the file is empty"):
        convert_checkpoint(tmp_path / "empty.pth", target)
    with pytest.raises(InputError, match=r"out\.pth: expected a name that ends in \.safetensors"):
        convert_checkpoint(source, tmp_path / "out.pth")
    (tmp_path / "same.safetensors").symlink_to(source)
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("same", "folder"):
        with pytest.raises(InputError, match=f"{name}.safetensors: a folder, or the checkpoint itself"):
            convert_checkpoint(source, tmp_path / f"{name}.safetensors", force=True)
    target.write_text("mine")
    with pytest.raises(InputError, match=r"out\.safetensors: there already; .*--force"):
        convert_checkpoint(source, target)
    assert target.read_text() == "mine"
    link = tmp_path / "link.safetensors"
    link.symlink_to("nowhere")
    with pytest.raises(InputError, match=r"link\.safetensors: there already; .*--force"):
        convert_checkpoint(source, link)
    assert link.is_symlink()
    convert_checkpoint(source, target, force=True)
    assert_state(load_file(target))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_safetensors_are_already_safe(tmp_path, name):
    save_file(STATE, tmp_path / name)
    assert is_safetensors(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}: already safe"):
        convert_checkpoint(tmp_path / name, tmp_path / "out.safetensors")


@pytest.mark.parametrize("header", [b"5", b"[1]", b"[" * 50_000])
def test_a_safetensors_header_that_is_no_table(tmp_path, header):
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert not is_safetensors(tmp_path / "w.safetensors")


def test_names_do_not_reach_the_terminal_raw(tmp_path):
    done, _ = convert(tmp_path, {**STATE, "\x1b]0;evil\x07": 1})
    assert "\x1b" not in str(done)
    assert "?]0;evil?" in str(done)


def test_the_command(tmp_path, monkeypatch, capsys):
    source = saved(tmp_path, {"model": under("module."), "epoch": 1})
    command = ["masksmith", "convert", str(source), str(tmp_path / "out.safetensors")]
    for expected in (0, 2):
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == expected
    said = capsys.readouterr()
    assert "prefix taken off: module." in said.out
    assert "there already" in said.err
