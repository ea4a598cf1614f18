"""Load test of `masksmith serve`: requests at a rate above what it can serve.

    python benchmarks/serve.py model.msk IMAGES… [--seconds 120] [--factor 3] [--queue 8]

A server is started and asked one request after another for its rate; then requests are begun at ``factor`` times that
rate, whether or not earlier ones are answered (an open loop), each with an image of the list in turn. 429 is an answer;
5xx, broken connections and answers after 60 s are failures, of which there must be none. Printed: counts, the rate of
200, percentiles of the latency of each kind of answer, and the server's memory before and after.
"""

import argparse
import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import httpx

TIMEOUT_S = 60


def start(model: str, queue: int) -> tuple[subprocess.Popen, str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--queue", str(queue), "--timeout", str(TIMEOUT_S)]
    process = subprocess.Popen([sys.executable, "-m", "masksmith", "-q", "serve", model, *options])
    url = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        try:
            httpx.get(f"{url}/health")
            return process, url
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the server did not start")


def memory_mib(process: subprocess.Popen) -> float:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def serial_rate(url: str, images: list[bytes]) -> float:
    """Return requests a second, one after another."""
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        for raw in images[:3]:  # the first load the model
            client.post("/segment", content=raw).raise_for_status()
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 3:
            client.post("/segment", content=images[count % len(images)]).raise_for_status()
            count += 1
        return count / (time.perf_counter() - began)


async def load(url: str, images: list[bytes], rate: float, seconds: float) -> dict[str, list[float]]:
    """Begin requests at a rate; return the seconds of each kind of answer."""
    found: dict[str, list[float]] = defaultdict(list)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)

    async def one(client: httpx.AsyncClient, raw: bytes) -> None:
        began = time.perf_counter()
        try:
            kind = str((await client.post("/segment", content=raw)).status_code)
        except httpx.TimeoutException:
            kind = "timeout"
        except httpx.TransportError as error:
            kind = type(error).__name__
        found[kind].append(time.perf_counter() - began)

    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as client:
        began, tasks = time.perf_counter(), set()
        for count in range(int(rate * seconds)):
            await asyncio.sleep(max(0, began + count / rate - time.perf_counter()))
            task = asyncio.create_task(one(client, images[count % len(images)]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--factor", type=float, default=3)
    parser.add_argument("--queue", type=int, default=8)
    asked = parser.parse_args()
    images = [path.read_bytes() for path in asked.images]
    process, url = start(asked.model, asked.queue)
    try:
        alone = serial_rate(url, images)
        before = memory_mib(process)
        print(
            f"one after another: {alone:.1f} requests/s; now {alone * asked.factor:.1f}/s for {asked.seconds:g} s"
        )
        found = asyncio.run(load(url, images, alone * asked.factor, asked.seconds))
        after = memory_mib(process)
    finally:
        process.send_signal(signal.SIGTERM)
    for kind, seconds in sorted(found.items()):
        cuts = statistics.quantiles(seconds, n=100) if len(seconds) > 1 else seconds * 99
        p50, p95, p99 = (1000 * cuts[at] for at in (49, 94, 98))
        print(f"{kind:>8} {len(seconds):7d}   p50 {p50:7.0f} ms   p95 {p95:7.0f} ms   p99 {p99:7.0f} ms")
    served = len(found["200"]) / asked.seconds
    print(
        f"served {served:.1f}/s; memory {before:.0f} MiB before, {after:.0f} MiB after; exit code {process.wait(90)}"
    )
    failures = sum(len(seconds) for kind, seconds in found.items() if kind not in ("200", "429"))
    print(f"failures: {failures}; load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
