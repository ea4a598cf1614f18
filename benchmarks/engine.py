"""What does an engine cost, and does it lose anything? A Ray cluster of one-core nodes on this machine beside local.

    python benchmarks/engine.py [--nodes 2] [--folds 3] [--epochs 8]
    python benchmarks/engine.py --kill 20 [--seed 0]

The first trains the same folds on generated images (24 of 101x101) with either engine, each in a process of its own,
and prints wall-clock and processor seconds: of the command, and of the workers, which start a Python each. The second
runs the command again and again, and after a random number of events kills (SIGKILL) a worker at its task or the
command itself, so many times in all; then the command runs to its end. What it leaves must equal, byte for byte, what
the local engine leaves without a death, and what was finished at any death must not have been touched since.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from masksmith.training.events import read_events

WANTED = ("submission.csv", "runs/*/checkpoints/*/final.*", "runs/*/oof/*.npy", "runs/*/test/*.npy")


def command(data, out, engine, options):
    words = ["compete", data, "--out", out, "--recipe", "smoke", "--engine", engine]
    sets = {
        "folds.count": max(3, options.folds),
        "folds.train": options.folds,
        "training.threads": 1,
        "training.stages.0.epochs": options.epochs,
    }
    words += [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "masksmith", *map(str, words)]


def cluster(nodes):
    """Start a Ray cluster of nodes of one core."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's own name)
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(nodes - 1):
        found.add_node(num_cpus=1)
    return found


def processes():
    """Return pid -> (its parent, its command) of all processes."""
    found = {}
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                stat = (place / "stat").read_text().rpartition(")")[2].split()
                found[int(place.name)] = (
                    int(stat[1]),
                    (place / "cmdline").read_bytes().decode(errors="replace"),
                )
            except OSError:
                continue
    return found


def own(found, pid):
    """Whether a process descends from this one."""
    while pid in found and pid != os.getpid():
        pid = found[pid][0]
    return pid == os.getpid()


def workers():
    """Return the workers of this process's cluster that are at a task of a fold."""
    found = processes()
    return [
        pid
        for pid, (_, words) in found.items()
        if words.startswith("ray::") and "/fold" in words and own(found, pid)
    ]


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def content(out):
    return {
        str(path.relative_to(out)): path.read_bytes() for glob in WANTED for path in sorted(out.glob(glob))
    }


def run(words):
    """Run a command; return its wall-clock and its processor seconds, and the most that its workers were seen at."""
    began, seen = time.monotonic(), {}
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        for worker in workers():
            try:
                seen[worker] = cpu_s(worker)
            except OSError:
                continue
        time.sleep(0.2)
    if status:
        raise SystemExit(f"the command ended with {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, sum(seen.values())


def overhead(folder, data, options):
    print(
        f"{'engine':>12s} {'wall':>8s} {'command':>9s} {'workers':>9s}   (seconds; the last two of processor)"
    )
    rows = {}
    for engine in ("local", "ray"):
        place = engine
        if engine == "ray":
            place = f"ray:{cluster(options.nodes).address}"
        rows[engine] = run(command(data, folder / engine, place, options))
        print(f"{engine:>12s} " + " ".join(f"{seconds:8.1f} " for seconds in rows[engine]), flush=True)
    same = content(folder / "local") == content(folder / "ray")
    print(f"results: {'the same bytes' if same else 'THEY DIFFER'}")
    return same


def finished(out):
    """Return what must not be touched again: inode and time of the last weights of each fold."""
    found = {}
    for path in out.glob("runs/*/checkpoints/*/final.json"):  # written last
        stat = path.stat()
        found[str(path.relative_to(out))] = stat.st_ino, stat.st_mtime_ns
    return found


def untouched(out, whole):
    """Note what is finished, and fail where something that was finished before was written again."""
    for name, mark in finished(out).items():
        assert whole.setdefault(name, mark) == mark, f"{name} was written again"


def kill_one(child, rng):
    """Kill a worker at its task or the command; return which."""
    at_work = workers()
    if at_work and rng.random() < 0.6:
        os.kill(rng.choice(at_work), signal.SIGKILL)
        return "workers"
    child.kill()
    child.wait()
    return "commands beside workers" if at_work else "commands alone"


def wait_for_events(child, out, count, seconds):
    target, until = events(out) + count, time.monotonic() + seconds
    while events(out) < target and time.monotonic() < until and child.poll() is None:
        time.sleep(0.05)


def kills(folder, data, options):
    rng = random.Random(options.seed)
    out = folder / "killed"
    run(command(data, folder / "local", "local", options))
    words = command(data, out, f"ray:{cluster(options.nodes).address}", options)
    counts, child, whole, began = {}, None, {}, time.monotonic()
    while sum(counts.values()) < options.kill:
        if child is None or child.poll() is not None:
            if child is not None and child.returncode == 0:
                raise SystemExit(f"it came to its end after {counts}; give it more epochs")
            child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_events(child, out, rng.randint(0, options.gap), options.patience)
        if child.poll() is None:
            untouched(out, whole)
            killed = kill_one(child, rng)
            counts[killed] = counts.get(killed, 0) + 1
            print(f"{time.monotonic() - began:6.0f}s {events(out):5d} events, killed: {counts}", flush=True)
    if child.wait():
        run(words)
    untouched(out, whole)
    logs = [read_events(log) for log in sorted(out.glob("runs/*/metrics*.jsonl"))]
    epochs = [[event["epoch"] for event in log if event["name"] == "loss"] for log in logs]
    once = epochs == [list(range(1, options.epochs + 1))] * options.folds
    same = content(folder / "local") == content(out)
    print(
        f"each epoch of {len(logs)} folds once: {once}; results: {'the same bytes' if same else 'THEY DIFFER'}"
    )
    return once and same


def events(out):
    return sum(len(read_events(log)) for log in out.glob("runs/*/metrics*.jsonl"))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--gap", type=int, default=40, help="most events between two kills")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds until a kill comes anyway")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        from masksmith import example

        data = example(folder / "example", train=24, test=6)
        done = kills(folder, data, options) if options.kill else overhead(folder, data, options)
        sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()
