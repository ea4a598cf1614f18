"""How time and memory grow: with the number of images, with their size, with the folds. Then a model of it.

    python benchmarks/scaling.py images [--counts 1000 3000 10000 30000 100000]
    python benchmarks/scaling.py sides  [--sides 101 256 512 1024 2048 4096]
    python benchmarks/scaling.py folds  [--folds 1 2 5 10]
    python benchmarks/scaling.py fit

One axis at a time, one process a point: its seconds are those of the processor (one thread), its memory the largest
resident size of that process, beside what the interpreter and its libraries took before. Every point is a line of
``--lines`` (JSON, with the machine; ``benchmarks/scaling.jsonl``), written when it is known, so that a run that was cut
off keeps its points; of two lines for one point ``fit`` takes the later. Data are generated under ``--work`` and
removed again: 101x101 grey PNG of layered sections with smooth bodies as masks, and probabilities of the same size.

``fit`` prints a model of each stage, seconds and bytes as a + b n + c n² (n images, or megapixels of one), fitted to
relative errors with no coefficient below zero, and its largest residual. ``simulate.py`` takes the task times.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LINES = Path(__file__).with_suffix(".jsonl")
SIDE = 101
FIELDS, FIELD = 48, 512  # random fields that the images are cut from, and their side
MOST_PREDICTED = 10_000  # images; of more the time is extrapolated
TILE = 512
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
            tifffile.imwrite(data / "images" / f"{name}.tif", planes, tile=(256, 256), compression="zlib")
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

    def watch(self, holder: Any, name: str, stage: str) -> None:
        """Measure every call of a function from now on."""
        inner = getattr(holder, name)
        setattr(holder, name, lambda *a, **k: self.measure(stage, lambda: inner(*a, **k)))


def check(root: str, further: bool = True) -> dict[str, Point]:
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
    if further:
        opened, recipe = folder.Project.open(project), load_recipe("smoke", ("folds.count=5",))
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


def options(count: int) -> list[str]:
    return ["folds.count=10", f"folds.train={count}", "training.stages.0.epochs=2"]


def compete(root: str, count: int) -> dict[str, Point]:
    """All of `compete` with the recipe `smoke`, in a new project, without the start of the interpreter."""
    import masksmith as ms
    import masksmith.training.loop

    meter, data = Meter(), Path(root) / "data"
    meter.measure(
        "compete",
        lambda: ms.compete(data, out=Path(root) / f"project{count}", recipe="smoke", overrides=options(count)),
    )
    return meter.points


def tasks(root: str, count: int) -> dict[str, Point]:
    """The training of each fold, one after the other, and their prediction."""
    import masksmith as ms

    meter, project = Meter(), Path(root) / "tasks"
    ms.check(Path(root) / "data", out=project)
    ms.train(project, recipe="smoke", overrides=options(1))  # what the first one loads is no part of a task
    for fold in range(1, count):
        meter.measure(
            f"train {fold}", lambda n=fold: ms.train(project, recipe="smoke", overrides=options(n + 1))
        )
    meter.measure("predict", lambda: ms.predict(project))
    return meter.points


WORK: dict[str, Callable[..., dict[str, Point]]] = {
    "write": write,
    "check": check,
    "predict": predict,
    "step": step,
    "compete": compete,
    "tasks": tasks,
}


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
        """Do a piece of work in a process of its own."""
        command = [sys.executable, __file__, "one", "--task", json.dumps({"work": work, **task})]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{work} {where}: {done.stderr[-2000:]}")
        for stage, found in json.loads(done.stdout.splitlines()[-1]).items():
            self.add(axis, stage, where, found)


def over_images(record: Recorder, counts: list[int], work: Path) -> None:
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
            num = min(50, max(4, 48 * 2**20 // side**2 // bands))
            at = {"side": side, "bands": bands, "images": num}
            with tempfile.TemporaryDirectory(dir=work) as root:
                record.measure("sides", "write", at, root=root, num=num, side=side, bands=bands)
                record.measure("sides", "check", at, root=root, further=False)
                few = max(2, min(num, 4 * 2**20 // side**2))
                record.measure("sides", "predict", at | {"images": few}, root=root, num=few, batch=4)
        if side <= 2048:  # larger ones are trained on windows
            record.measure("sides", "step", {"side": side, "recipe": "smoke"}, side=side)
        if side in (256, 512):
            record.measure(
                "sides", "step", {"side": side, "recipe": "auto"}, side=side, recipe="auto", batch=4
            )


def over_folds(record: Recorder, counts: list[int], work: Path) -> None:
    """`compete` with so many of ten folds, and each fold as a task of its own."""
    with tempfile.TemporaryDirectory(dir=work) as root:
        record.measure("folds", "write", {}, root=root, num=50)
        data = Path(root) / "data"
        (data / "test").mkdir()
        for path in sorted((data / "images").iterdir())[40:]:
            path.rename(data / "test" / path.name)
            (data / "masks" / path.name).unlink()
        for count in counts:
            record.measure("folds", "compete", {"folds": count}, root=root, count=count)
        record.measure("tasks", "tasks", {}, root=root, count=max(counts))


# --- the model ------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[Point]:
    """Return the points; of two of one place the later."""
    found: dict[str, Point] = {}
    for row in path.read_text().splitlines():
        point = json.loads(row)
        where = ("axis", "stage", "images", "side", "bands", "recipe", "batch", "folds")
        if point["axis"] == "sides" and point["stage"] != "step":
            where = ("axis", "stage", "side", "bands")
        found[str([point.get(key) for key in where])] = point
    return list(found.values())


def fit(xs: list[float], ys: list[float], powers: tuple[int, ...]) -> tuple[list[float], float]:
    """Return the coefficients of a sum of powers, none below zero, and the largest relative residual.

    The relative errors are made small, so that the small points count as much as the large ones.
    """
    import numpy as np
    from scipy.optimize import nnls

    x, y = np.asarray(xs, float), np.asarray(ys, float)
    table = np.stack([x**power for power in powers], axis=1)
    scale = table.max(axis=0)  # the powers differ by ten orders
    found, _ = nnls(table / scale / y[:, None], np.ones(len(y)))
    found = found / scale
    return found.tolist(), float(np.abs(table @ found / y - 1).max())


def models(points: list[Point]) -> list[tuple[str, str, str, list[float], float, int]]:
    """Return (axis, stage, quantity, coefficients of 1, x, x², largest residual, points) of all that was measured.

    ``images``: seconds and MiB above the libraries, x = images. ``sides``: of one image, x = megapixels.
    """
    table = []
    for axis, unit in (("images", "images"), ("sides", "megapixels")):
        own = [one for one in points if one["axis"] == axis and one["stage"] != "write"]
        own = [one for one in own if one.get("bands", 1) == 1 and one.get("recipe", "smoke") == "smoke"]
        for stage in dict.fromkeys(one["stage"] for one in own):
            each = sorted(
                (one for one in own if one["stage"] == stage),
                key=lambda one: one.get("side", one.get("images")),
            )
            if len(each) < 3:
                continue
            if axis == "images":
                xs, num = [one["images"] for one in each], [1] * len(each)
            else:
                xs = [one.get("canvas", one["side"]) ** 2 / 1e6 for one in each]
                num = [one.get("images", 1) for one in each]
            powers = (0, 1, 2) if axis == "images" and len(each) > 3 else (0, 1)
            seconds = [one["seconds"] / count for one, count in zip(each, num, strict=True)]
            grown = [max(one["peak_mib"] - one["base_mib"], 0.1) for one in each]
            for quantity, ys in ((f"s, {unit}", seconds), (f"MiB, {unit}", grown)):
                found, worst = fit(xs, ys, powers)
                table.append((axis, stage, quantity, found + [0.0] * (3 - len(found)), worst, len(each)))
    count = [one for one in points if one["stage"] == "compete"]
    if len(count) > 2:
        found, worst = fit([one["folds"] for one in count], [one["seconds"] for one in count], (0, 1))
        table.append(("folds", "compete", "s, folds", [*found, 0.0], worst, len(count)))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["images", "sides", "folds", "fit", "one"])
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 3000, 10_000, 30_000, 100_000])
    parser.add_argument("--sides", type=int, nargs="+", default=[101, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--lines", type=Path, default=LINES)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--task", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.what == "one":
        import cv2

        cv2.setNumThreads(1)
        task = json.loads(asked.task)
        print(json.dumps(WORK[task.pop("work")](**task)))
    elif asked.what == "fit":
        for axis, stage, quantity, found, worst, num in models(read_lines(asked.lines)):
            a, b, c = found
            print(
                f"{axis:7s} {stage:11s} {quantity:15s} {a:10.4g} + {b:10.4g} x + {c:10.4g} x²   "
                f"within {worst:4.0%} ({num})"
            )
    else:
        axes = {"images": over_images, "sides": over_sides, "folds": over_folds}
        values = {"images": asked.counts, "sides": asked.sides, "folds": asked.folds}
        axes[asked.what](Recorder(asked.lines), values[asked.what], asked.work)


if __name__ == "__main__":
    main()
