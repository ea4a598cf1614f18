"""How time and memory grow: with the number of images, with their size, with the folds.

    python benchmarks/scaling.py images [--counts 1000 3000 10000 30000 100000]
    python benchmarks/scaling.py sides  [--sides 101 256 512 1024 2048 4096]
    python benchmarks/scaling.py folds  [--folds 1 2 4 8]

One axis at a time, one process a point: its seconds are those of the processor (one thread), its memory the largest
resident size of that process, beside what the interpreter and its libraries took before. Every point is a line of
``--lines`` (JSON, with the machine; ``benchmarks/scaling.jsonl``), written when it is known, so that a run that was cut
off keeps its points. Data are generated under ``--work`` and removed again: 101x101 grey PNG of layered sections with
smooth bodies as masks, and probabilities of the same size. ``scaling_model.py`` makes a model of the points,
``simulate.py`` takes the task times.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

LINES = Path(__file__).with_suffix(".jsonl")
SIDE = 101
FIELDS, FIELD = 48, 512  # random fields that the images are cut from, and their side
MOST_PREDICTED = 10_000  # images; of more the time is extrapolated
TILE = 512
BANDS = {"photometric": "minisblack", "planarconfig": "contig"}
Point = dict[str, Any]


# --- data -----------------------------------------------------------------------------------------------------


def fields(side: int, sigma_xy: tuple[float, float], seed: int):
    import cv2
    import numpy as np

    rng = np.random.default_rng(seed)
    for _ in range(FIELDS):
        noise = rng.standard_normal((side, side)).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), sigma_xy[0], sigmaY=sigma_xy[1])
        yield smooth / smooth.std()


class Sections:
    """Images and masks by their number: sums of two layered fields, cut at random, and a smooth body or none."""

    def __init__(self, side: int, bands: int = 1) -> None:
        import numpy as np

        self.side, self.bands = side, bands
        whole = max(FIELD, side + side // 4)
        bank = fields if side <= 256 else _some
        self.layers, self.bodies = list(bank(whole, (12, 2.5), 0)), list(bank(whole, (18, 18), 1))
        self.np = np

    def _cut(self, rng, bank):
        field = bank[rng.integers(len(bank))]
        y, x = rng.integers(0, len(field) - self.side, 2)
        part = field[y : y + self.side, x : x + self.side]
        return part[:, ::-1] if rng.random() < 0.5 else part

    def make(self, at: int):
        """Return image (h, w, c) and mask (h, w) of a number."""
        np = self.np
        rng = np.random.default_rng((7, at))
        height = self._cut(rng, self.bodies) + self._cut(rng, self.bodies)
        mask = (height > (9 if at % 5 < 2 else 0.6)).astype(np.uint8)
        planes = []
        for _ in range(self.bands):
            layers = self._cut(rng, self.layers) + self._cut(rng, self.layers)
            grain = np.round(rng.standard_normal((8, self.side))[rng.integers(0, 8, self.side)], 1)
            planes.append(np.clip(128 + 22 * np.where(mask, 0.3 * layers, layers) + 5 * grain, 0, 255))
        return np.stack(planes, axis=-1), mask, height


def _some(side: int, sigma_xy: tuple[float, float], seed: int):
    """Yield a few large fields, made at a quarter of the size."""
    import cv2

    small = side // 4 + 1
    for at, field in enumerate(fields(small, (sigma_xy[0] / 4, max(0.7, sigma_xy[1] / 4)), seed)):
        if at == 4:
            return
        yield cv2.resize(field, (side, side), interpolation=cv2.INTER_LINEAR)


def write(root: str, num: int, side: int = SIDE, bands: int = 1, codes: bool = False) -> dict[str, Point]:
    """Write pairs, and probabilities as codes (q > 32767 is close to the mask)."""
    import cv2
    import numpy as np

    from masksmith.data.store import StoreWriter

    data = Path(root) / "data"
    for name in ("images", "masks"):
        (data / name).mkdir(parents=True)
    made = Sections(side, bands)
    width = len(str(num - 1))
    names = [f"{at:0{width}d}" for at in range(num)]
    shapes = [(name, (side, side, 1)) for name in names]
    writer = StoreWriter(Path(root) / "codes.npy", shapes, dtype=np.uint16) if codes else None
    for at, name in enumerate(names):
        image, mask, height = made.make(at)
        if bands == 1:
            cv2.imwrite(str(data / "images" / f"{name}.png"), image[..., 0].astype(np.uint8))
        else:
            import tifffile

            planes = (40 * image).astype(np.uint16)
            tifffile.imwrite(
                data / "images" / f"{name}.tif", planes, tile=(256, 256), compression="zlib", **BANDS
            )
        cv2.imwrite(str(data / "masks" / f"{name}.png"), 255 * mask)
        if writer:
            low = -9 if at % 5 < 2 else -0.6
            logits = 3 * (height + low + 0.3 * made._cut(np.random.default_rng((8, at)), made.layers))
            writer.write(name, np.rint(65535 / (1 + np.exp(-logits))).astype(np.uint16)[..., None])
    if writer:
        writer.close()
    size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
    return {"write": {"files_mib": size / 2**20}}


# --- what is measured, in processes of their own --------------------------------------------------------------


def memory_mib(name: str) -> float:
    """Return VmRSS or VmHWM, the largest since it was reset, of this process (ru_maxrss begins with the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


class Meter:
    """Seconds of the processor and largest memory of pieces of work, which may lie inside each other."""

    def __init__(self) -> None:
        self.points: dict[str, Point] = {}
        self._open: list[float] = []

    def _reset(self) -> None:
        """Take the largest memory until now for all that is open, and begin anew."""
        peak = memory_mib("VmHWM")
        self._open = [max(one, peak) for one in self._open]
        Path("/proc/self/clear_refs").write_text("5")

    def measure(self, stage: str, action: Callable[[], Any]) -> Any:
        """Do it and keep what it took."""
        self._reset()
        self._open.append(0.0)
        base, began = memory_mib("VmRSS"), time.process_time()
        result = action()
        seconds = time.process_time() - began
        self._reset()
        peak, before = self._open.pop(), self.points.get(stage)
        if before:  # called again
            seconds, peak, base = (
                before["seconds"] + seconds,
                max(before["peak_mib"], peak),
                before["base_mib"],
            )
        self.points[stage] = {"seconds": seconds, "peak_mib": peak, "base_mib": base}
        return result

    def watch(self, holder: Any, name: str, stage: str, *, numbered: bool = False) -> None:
        """Measure every call of a function from now on, all together or each by its number."""
        inner, calls = getattr(holder, name), itertools.count()

        def wrapped(*positional: Any, **named: Any) -> Any:
            own = f"{stage} {next(calls)}" if numbered else stage
            return self.measure(own, lambda: inner(*positional, **named))

        setattr(holder, name, wrapped)


def check(root: str) -> dict[str, Point]:
    """The check with its parts, and then folds and the search: 255 thresholds x 30 least areas, as in sweep.py."""
    from masksmith.data import groups
    from masksmith.project import folder
    from masksmith.recipes.recipe import load_recipe
    from masksmith.steps import check as steps
    from masksmith.steps.folds import folds_of

    meter, project = Meter(), Path(root) / "project"
    for holder, name, stage in (
        (steps, "read_catalog", "catalogue"),
        (folder, "build_cache", "cache"),
        (groups, "look", "look"),
        (groups, "near_groups", "duplicates"),
        (groups, "find_neighbours", "neighbours"),
    ):
        meter.watch(holder, name, stage)
    meter.measure("check", lambda: steps.check_folder(Path(root) / "data", project, dialect=None))
    (project / "cache").rename(Path(root) / "cache")  # a link: what is predicted needs it, too
    (project / "cache").symlink_to(Path(root) / "cache")
    if not (Path(root) / "codes.npy").exists():
        return meter.points
    opened, recipe = folder.Project.open(project), load_recipe("smoke", ("folds.count=4",))
    meter.measure("folds", lambda: folds_of(opened, recipe))
    meter.measure("search", lambda: search(Path(root)))
    return meter.points


def search(root: Path) -> None:
    """Search over probabilities and masks from the disk."""
    from masksmith.data.store import Store
    from masksmith.metrics import get_metric
    from masksmith.postprocess.config import TripletOperator, TuningConfig
    from masksmith.postprocess.operator_rule import Seen
    from masksmith.postprocess.operator_search import make_operator_sweep
    from masksmith.postprocess.operators import PLAIN
    from masksmith.postprocess.search import best_rule
    from masksmith.prediction.store import open_codes

    thresholds = [(at + 0.5) / 256 for at in range(255)]
    areas = [round(0.001 * at, 4) for at in range(30)]
    triplet = TripletOperator(op="triplet", top=[0.0], area=areas, at=thresholds)
    metric, config = get_metric("tgs_map"), TuningConfig(operators=[triplet])
    codes, masks = open_codes(root / "codes.npy"), Store(root / "cache" / "train_masks.npy")
    pictures = lambda: ((codes[name], masks[name][..., 0], Seen()) for name in codes)  # noqa: E731
    rules, sweep = make_operator_sweep(pictures, metric, config, plain=PLAIN)
    best_rule(sweep, rules, metric)


def pairs(num: int) -> dict[str, Point]:
    """Near-duplicates among so many random hashes: all pairs of hashes are compared, few thumbnails."""
    import numpy as np

    from masksmith.data.look import EDGE, SIDE, Look
    from masksmith.data.near_duplicates import near_groups

    rng, meter = np.random.default_rng(0), Meter()
    names = np.array([str(at) for at in range(num)])
    hashes = rng.integers(0, 256, (num, 8), np.uint8)
    none, sizes = np.zeros((0, 4, EDGE), np.float16), np.full((num, 2), SIDE)
    seen = Look(names, names, np.zeros(num, bool), hashes, sizes, none, np.zeros((num, 1), np.float32))
    small = rng.standard_normal((SIDE, SIDE)).astype(np.float32)
    meter.measure("pairs", lambda: near_groups(seen, lambda at: np.roll(small, at)))
    return meter.points


def predict(root: str, num: int, batch: int = 32) -> dict[str, Point]:
    """The net of `smoke`, one view, tiles of 512 pixels of larger images; codes are written as in a project."""
    from masksmith.data.store import Store
    from masksmith.models.segmentation import build_model
    from masksmith.prediction.predict import predict_parts, write_codes
    from masksmith.prediction.tiles import Tiling
    from masksmith.recipes.recipe import load_recipe
    from masksmith.training.machine import make_fabric, settle_machine

    images = Store(Path(root) / "cache" / "train_images.npy")
    recipe = load_recipe("smoke", ("training.threads=1", "training.device=cpu"))
    fabric = make_fabric(settle_machine(recipe.training))
    model = build_model(recipe.model, in_channels=images.channels, seed=0)
    tiling = Tiling.of(recipe.prediction.model_copy(update={"tile_hw": (TILE, TILE)}))
    names, meter = list(images)[:num], Meter()

    def batches(**begun):
        return predict_parts(
            fabric, model, images, names, tta=["identity"], batch_size=batch, tiling=tiling, **begun
        )

    meter.measure("predict", lambda: write_codes(Path(root) / "probs.npy", images, names, batches, blank=()))
    return meter.points


def step(side: int, recipe: str = "smoke", bands: int = 1, batch: int = 1) -> dict[str, Point]:
    """A training step and a forward pass at a canvas: the median of three, and the memory after them."""
    from masksmith.models.encoders import settle_encoder
    from masksmith.planning.timings import Stepper, time_repeated
    from masksmith.recipes.recipe import load_recipe
    from masksmith.training.machine import settle_machine

    asked = load_recipe(recipe, ("training.threads=1", "training.device=cpu", "training.start_run=null"))
    encoder = asked.model.encoder
    if encoder == "auto":
        encoder = settle_encoder("auto", "none").encoder
    model = asked.model.model_copy(update={"encoder": encoder, "encoder_weights": "none"})
    config = settle_machine(asked.training)
    canvas = math.ceil(side / model.divisor) * model.divisor
    base = memory_mib("VmRSS")
    stepper = Stepper(
        model,
        config,
        in_channels=bands,
        canvas_hw=(canvas, canvas),
        batch_size=batch,
        loss=config.stages[-1].loss,
    )
    _, forward_s = time_repeated(stepper.forward, 0.1, time.process_time)
    forward_mib = memory_mib("VmHWM")
    _, step_s = time_repeated(stepper.step, 0.1, time.process_time)
    point = {"seconds": step_s, "forward_s": forward_s, "base_mib": base, "canvas": canvas, "batch": batch}
    point |= {"forward_mib": forward_mib, "peak_mib": memory_mib("VmHWM"), "precision": config.precision}
    return {"step": point | {"encoder": encoder}}


def compete(root: str, count: int) -> dict[str, Point]:
    """All of `compete` with the recipe `smoke` and so many of ten folds, in a new project; each fold beside it."""
    import masksmith as ms
    from masksmith.steps import compete as steps

    meter, data = Meter(), Path(root) / "data"
    meter.watch(steps, "train_member", "train", numbered=True)
    options = ["folds.count=10", f"folds.train={count}", "training.stages.0.epochs=2"]
    meter.measure(
        "compete",
        lambda: ms.compete(data, out=Path(root) / f"project{count}", recipe="smoke", overrides=options),
    )
    return meter.points


WORK: dict[str, Callable[..., dict[str, Point]]] = {
    "write": write,
    "check": check,
    "pairs": pairs,
    "predict": predict,
    "step": step,
    "compete": compete,
}
LOADED = [
    *("cv2", "tifffile", "torch", "masksmith.models.encoders", "masksmith.pipeline"),
    *("masksmith.planning.timings", "masksmith.postprocess.operator_search"),
    *("masksmith.prediction.predict", "masksmith.steps.compete", "masksmith.steps.report"),
]
"""Loaded once; every point is then measured in a copy (fork) of this process."""


def _child(sender: Connection, work: str, task: Point) -> None:
    sender.send(WORK[work](**task))
    sender.close()


# --- the axes -------------------------------------------------------------------------------------------------


def hardware() -> str:
    """Return processor, cores and the flags that decide speed."""
    text = Path("/proc/cpuinfo").read_text()
    name = next((row.split(":")[1].strip() for row in text.splitlines() if row.startswith("model name")), "?")
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in text]
    return f"{name}, {os.cpu_count()} cores, {' '.join(flags)}, Python {platform.python_version()}"


class Recorder:
    """Writes a line a point."""

    def __init__(self, lines: Path) -> None:
        self.lines, self.hardware = lines, hardware()

    def add(self, axis: str, stage: str, where: Point, found: Point) -> None:
        """Write and print a point."""
        shown = {key: round(value, 5) if isinstance(value, float) else value for key, value in found.items()}
        line = {"axis": axis, "stage": stage, **where, **shown, "hardware": self.hardware}
        with self.lines.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps({**line, "hardware": ""}), flush=True)

    def measure(self, axis: str, work: str, where: Point, **task: Any) -> None:
        """Do a piece of work in a process of its own, which has all libraries loaded."""
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(sender, work, task))
        child.start()
        sender.close()
        try:
            points = receiver.recv()
        except EOFError:
            raise SystemExit(f"{work} {where}: failed") from None
        child.join()
        for stage, found in points.items():
            self.add(axis, stage, where, found)


def over_images(record: Recorder, counts: list[int], work: Path) -> None:
    for num in counts:
        record.measure("images", "pairs", {"images": num}, num=num)
    for num in counts:
        with tempfile.TemporaryDirectory(dir=work) as root:
            at = {"images": num}
            record.measure("images", "write", at, root=root, num=num, codes=True)
            record.measure("images", "check", at, root=root)
            if num <= MOST_PREDICTED:
                record.measure("images", "predict", at, root=root, num=num)


def over_sides(record: Recorder, sides: list[int], work: Path) -> None:
    for side in sides:
        for bands in (1, 10) if side == 1024 else (1,):
            num = min(50, max(4, 50 * 2**20 // side**2 // bands))
            at = {"side": side, "bands": bands, "images": num}
            with tempfile.TemporaryDirectory(dir=work) as root:
                codes = bands == 1 and side <= 1024
                record.measure("sides", "write", at, root=root, num=num, side=side, bands=bands, codes=codes)
                record.measure("sides", "check", at, root=root)
                few = max(1, min(num, 4 * 2**20 // side**2))
                record.measure("sides", "predict", at | {"images": few}, root=root, num=few, batch=4)
        if side <= 1024:  # larger ones are trained on windows
            record.measure("sides", "step", {"side": side, "recipe": "smoke"}, side=side)
        if side in (256, 512):
            record.measure(
                "sides", "step", {"side": side, "recipe": "auto"}, side=side, recipe="auto", batch=4
            )


def over_folds(record: Recorder, counts: list[int], work: Path) -> None:
    """`compete` with so many of ten folds."""
    with tempfile.TemporaryDirectory(dir=work) as root:
        record.measure("folds", "write", {}, root=root, num=50)
        data = Path(root) / "data"
        (data / "test").mkdir()
        for path in sorted((data / "images").iterdir())[40:]:
            path.rename(data / "test" / path.name)
            (data / "masks" / path.name).unlink()
        for count in counts:
            record.measure("folds", "compete", {"folds": count}, root=root, count=count)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["images", "sides", "folds"])
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 3000, 10_000, 30_000, 100_000])
    parser.add_argument("--sides", type=int, nargs="+", default=[101, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--lines", type=Path, default=LINES)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    asked = parser.parse_args()
    for name in LOADED:
        import_module(name)
    sys.modules["cv2"].setNumThreads(1)
    sys.modules["torch"].set_num_threads(1)
    axes = {"images": over_images, "sides": over_sides, "folds": over_folds}
    values = {"images": asked.counts, "sides": asked.sides, "folds": asked.folds}
    axes[asked.what](Recorder(asked.lines), values[asked.what], asked.work)


if __name__ == "__main__":
    main()
