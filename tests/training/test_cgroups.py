import os

from masksmith.training.cgroups import cpu_quota, parse_cgroup
from masksmith.training.machine import usable_cores


def test_groups_of_both_versions_are_read():
    two = [(2, "", "/user.slice/x"), (2, "unified", "/user.slice/x")]
    assert parse_cgroup("0::/user.slice/x\n", "memory") == two
    text = "4:memory:/docker/abc\n3:cpuset:/\n2:cpu,cpuacct:/a:b\n0::/\n"
    root = [(2, "", "/"), (2, "unified", "/")]
    assert parse_cgroup(text, "memory") == [(1, "memory", "/docker/abc"), *root]
    assert parse_cgroup(text, "cpu") == [(1, "cpu", "/a:b"), (1, "cpu,cpuacct", "/a:b"), *root]
    assert parse_cgroup("", "cpu") == []


def _write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def test_the_processor_time_of_a_container_counts_as_cores(tmp_path, monkeypatch):
    """``docker --cpus=2`` on 64 cores, in the forms that both versions give it; the tightest limit counts."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    two, one = {"proc/self/cgroup": "0::/pod/box"}, {"proc/self/cgroup": "4:cpu,cpuacct:/docker/abc"}
    cfs = "sys/fs/cgroup/{}/cpu.cfs_{}_us"
    cases = (
        ({}, None, 64),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0, 2),
        (two | {"sys/fs/cgroup/pod/box/cpu.max": "max 100000"}, None, 64),
        (two | {"sys/fs/cgroup/pod/box/cpu.max": "max 100000", "sys/fs/cgroup/pod/cpu.max": "150000 100000"}, 1.5, 2),
        (two | {"sys/fs/cgroup/pod/box/cpu.max": "50000 100000", "sys/fs/cgroup/cpu.max": "9 1"}, 0.5, 1),
        (two | {"sys/fs/cgroup/unified/pod/cpu.max": "300000 100000"}, 3.0, 3),
        (two | {"sys/fs/cgroup/cpu.max": "12800000 100000"}, 128.0, 64),
        (one | {cfs.format("cpu", "quota"): "-1", cfs.format("cpu", "period"): "100000"}, None, 64),
        (one | {cfs.format("cpu", "quota"): "250000", cfs.format("cpu", "period"): "100000"}, 2.5, 3),
        (
            one
            | {cfs.format("cpu,cpuacct/docker/abc", "quota"): "40000"}
            | {cfs.format("cpu,cpuacct/docker/abc", "period"): "20000"},
            2.0,
            2,
        ),
    )  # fmt: skip
    for at, (files, quota, cores) in enumerate(cases):
        root = _write(tmp_path / str(at), files)
        assert (cpu_quota(root), usable_cores(root)) == (quota, cores), files


def test_without_an_affinity_all_cores_are_seen(tmp_path, monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert usable_cores(tmp_path) == os.cpu_count()
