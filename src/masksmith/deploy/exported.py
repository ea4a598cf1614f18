"""Segment with a file that ``masksmith export`` made: ONNX, OpenVINO or torch.export, without building a model.

Beside FILE lies FILE.json: what ``model.json`` of the bundle holds, and what was exported. An image goes through the
file as it is, one view of it; where the model was made for tiles, larger images are cut into the same tiles.
"""

import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from masksmith.core.arrays import Float, Image, Shaped
from masksmith.core.errors import InputError
from masksmith.core.files import digest, file_digest
from masksmith.core.progress import track
from masksmith.data.array_store import Images
from masksmith.deploy.bundle import Bundle, facts_of
from masksmith.deploy.segmenter import Batches, Segmenter
from masksmith.postprocess.rules import read_rule
from masksmith.prediction.runtimes import import_openvino, openvino_core
from masksmith.prediction.tiles import Assembly, Part, Tiling, cut, tiles_of
from masksmith.preprocess import canvas_of

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
"""Format -> ending of its file."""
Run = Callable[[Mapping[str, np.ndarray]], Shaped[np.ndarray, "b h w *k"]]
"""From inputs by name to the only output."""


def import_onnx(name: str) -> Any:  # noqa: ANN401
    """Import a package of the extra ``onnx``.

    Raises:
        InputError: It cannot be imported.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"ONNX needs {name}, which cannot be imported ({error}); run `pip install masksmith[onnx]`"
        ) from error


@dataclass(frozen=True)
class ExportFacts:
    """What was exported."""

    format: str
    precision: str
    mask: bool
    """Whether masks come out instead of probabilities."""
    files: dict[str, str]
    """Name -> hash of each file."""
    least_side: int = 1
    """Of an image, in pixels."""
    inputs: dict[str, str] = field(default_factory=dict)
    """In words."""
    output: str = ""
    parity: dict[str, Any] = field(default_factory=dict)
    """How it differed from the bundle when it was made."""
    gate: dict[str, Any] | None = None
    """Of int8: its score on held-out images."""


def facts_path(path: Path) -> Path:
    """Return where the facts of an exported file lie."""
    return path.with_name(f"{path.name}.json")


class ExportedBundle(Bundle):
    """The facts of an exported file.

    Args:
        path: The file.

    Raises:
        InputError: It or its FILE.json is missing, damaged or of a later format, or another file was put in its place.
    """

    def __init__(self, path: Path) -> None:  # no zip to be opened
        self.path, own = path, facts_path(path)
        for one in (path, own):
            if not one.is_file():
                raise InputError(
                    f"{one}: no such file; expected what `masksmith export` made, {path.name} with {own.name} beside it"
                )
        try:
            value = json.loads(own.read_bytes())
            known = ExportFacts.__dataclass_fields__
            self.export = ExportFacts(**{key: one for key, one in value["export"].items() if key in known})
            self.facts = facts_of(value["model"], own)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{own}: not of `masksmith export`, or damaged ({error}); export again"
            ) from error
        self._digests = self._checked()

    def _checked(self) -> dict[str, str]:
        for name, expected in self.export.files.items():
            file = self.path.with_name(Path(name).name)
            if not file.is_file() or file_digest(file) != expected:
                raise InputError(f"{file}: missing, damaged or changed since it was exported; export again")
        if self.path.name not in self.export.files or self.export.format not in RUNNERS:
            raise InputError(f"{facts_path(self.path)}: its facts are those of another file; export again")
        return self.export.files

    @property
    def checksum(self) -> str:
        """A hash of what it computes."""
        return digest(json.dumps(self._digests, sort_keys=True))


class ExportedSegmenter(Segmenter):
    """A Segmenter that runs an exported file, on the CPU; it has the same functions.

    Args:
        path: The file.
        device: None or "cpu".
        runtime: None, or the file's own format.

    Raises:
        InputError: As ExportedBundle; another device or runtime; the file gives masks only; its package is missing.
    """

    bundle: ExportedBundle

    def __init__(self, path: str | Path, *, device: str | None = None, runtime: str | None = None) -> None:
        self.bundle = ExportedBundle(Path(path))
        export = self.bundle.export
        if device not in (None, "cpu", "auto") or runtime not in (None, export.format):
            raise InputError(
                f"{path}: exported for {export.format} on the CPU, {device or runtime!r} was asked for; use the bundle "
                "it was made of"
            )
        if export.mask:
            raise InputError(
                f"{path}: it gives masks, without probabilities; expected a file that was exported without --mask"
            )
        self.target = self.bundle.target
        self.task = self.target.task
        self.classes = self.target.classes
        self.rule = read_rule(dict(self.bundle.facts.rule))
        self._device, self._runtime = device, runtime
        self._lock = threading.Lock()

    @cached_property
    def _run(self) -> Run:
        return open_file(self.bundle.path, self.bundle.export)

    @cached_property
    def _tiling(self) -> Tiling | None:
        return Tiling.of(self.bundle.recipes[0].prediction)

    def _passes(
        self, images: Images, names: Sequence[str], scalars: Mapping[str, Mapping[str, float]]
    ) -> list[tuple[Batches, float]]:
        """Return what predicts images with the file; it holds the mean of the members.

        Raises:
            InputError: A number is missing; when called, an image is of a size that the file does not take.
        """
        return [(partial(self._parts, images, names, self._numbers(names, scalars)), 1.0)]

    def _planes_of(self, at: int) -> int:
        del at  # there is one pass, of all members
        return min(one.prediction.planes(self.target.outputs) for one in self.bundle.recipes)

    def _numbers(
        self, names: Sequence[str], scalars: Mapping[str, Mapping[str, float]]
    ) -> dict[str, Float[np.ndarray, "1 s"]]:
        if not self.model_scalars:
            return {}
        for name in names:
            if missing := [one for one in self.model_scalars if one not in scalars.get(name, {})]:
                raise InputError(
                    f"image {name!r}: no {missing[0]!r}, which this model takes beside each image; give a table with "
                    f"the columns {', '.join(self.model_scalars)}"
                )
        return {
            name: np.array([[scalars[name][one] for one in self.model_scalars]], np.float32) for name in names
        }

    def _parts(
        self,
        images: Images,
        names: Sequence[str],
        numbers: Mapping[str, Float[np.ndarray, "1 s"]],
        *,
        finished: Collection[str] = (),
        rows: Mapping[str, int] | None = None,
    ) -> Iterator[list[tuple[str, Part]]]:
        for name in track(names, total=len(names), what="segmenting"):
            if name in finished:
                continue
            plan = None if self._tiling is None else self._tiling.plan(images.shape(name))
            if plan is None or self._tiling is None:
                yield [(name, Part(0, self._probs(images.checked(name), numbers.get(name), name)))]
                continue
            border = self.bundle.recipes[0].size.border
            done = (rows or {}).get(name, 0)
            whole = Assembly(plan, self._tiling.weights, images.shape(name), done=done)
            for row, column in tiles_of(plan):
                tile = cut(partial(images.window, name), plan, row, column, border)
                if part := whole.add(row, column, self._probs(tile, numbers.get(name), name)):
                    yield [(name, part)]

    def _probs(
        self, image: Image, numbers: Float[np.ndarray, "1 s"] | None, name: str
    ) -> Float[np.ndarray, "h w k"]:
        height, width = image.shape[:2]
        for recipe in self.bundle.recipes:
            canvas_of(recipe.size, [(height, width)], divisor=1)  # refuses what is larger than pad_hw
        if min(height, width) < self.bundle.export.least_side:
            raise InputError(
                f"image {name!r}: {height}x{width}; {self.bundle.path} takes sides of "
                f"{self.bundle.export.least_side} pixels or more, use the bundle it was made of"
            )
        inputs = {"image": np.ascontiguousarray(image[None])}
        return self._run(inputs if numbers is None else inputs | {"scalars": numbers})[0]


def load_any(path: str | Path, *, device: str | None = None, runtime: str | None = None) -> Segmenter:
    """Open a bundle, or a file that ``masksmith export`` made.

    Raises:
        InputError: As Segmenter and ExportedSegmenter.
    """
    kind = ExportedSegmenter if Path(path).suffix in SUFFIXES.values() else Segmenter
    return kind(path, device=device, runtime=runtime)


def open_file(path: Path, export: ExportFacts) -> Run:
    """Return what runs a file.

    Raises:
        InputError: The file is damaged, or its package is missing.
    """
    try:
        return RUNNERS[export.format](path, export.precision)
    except InputError:
        raise
    except Exception as error:  # each package has errors of its own
        raise InputError(f"{path}: cannot be opened ({error}); export again") from error


def _open_onnx(path: Path, precision: str) -> Run:
    del precision  # it is the file's
    runtime = import_onnx("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: np.asarray(session.run(None, dict(inputs))[0])


def _open_openvino(path: Path, precision: str) -> Run:
    core = openvino_core(import_openvino())
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    request = core.compile_model(core.read_model(path), "CPU", options).create_infer_request()
    return lambda inputs: np.array(request.infer(dict(inputs))[0])


def _open_torch(path: Path, precision: str) -> Run:
    del precision
    module = torch.export.load(path).module()

    def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            found = module(*(torch.from_numpy(one) for one in inputs.values()))
        return np.asarray(found.numpy())

    return run


RUNNERS: dict[str, Callable[[Path, str], Run]] = {
    "onnx": _open_onnx,
    "openvino": _open_openvino,
    "torch": _open_torch,
}
