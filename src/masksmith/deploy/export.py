"""Export a bundle as one file for another runtime: ONNX, OpenVINO or torch.export.

The whole ensemble is in the file, from raw pixels to probabilities at the image's size (see graph). The finished file
is compared with the bundle's own model before it gets its name; one that is too far from it is removed. One of int8
must keep the score out of fold: each fold's members are quantized as the file is, and predict the images that they were
trained without.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from masksmith.core.arrays import Codes, Image
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.core.files import file_digest, no_room, rename, write_json
from masksmith.core.progress import logger, track
from masksmith.core.randomness import stream
from masksmith.data.array_store import Images
from masksmith.deploy.bundle import ModelFacts, format_of
from masksmith.deploy.exported import SUFFIXES, ExportedSegmenter, ExportFacts, facts_path, import_onnx
from masksmith.deploy.formats import PRECISIONS, WRITERS, import_nncf
from masksmith.deploy.graph import Ensemble, Masks, Member, Scaled, TypeMax, same_padding
from masksmith.deploy.parity import BOUNDS, RESIZED, UNBOUNDED, Parity, compare, need_parity, samples_of
from masksmith.deploy.segmenter import Segmenter
from masksmith.prediction.combine import build_combine, mask_only
from masksmith.prediction.runtimes import import_openvino
from masksmith.prediction.tiles import Tiling
from masksmith.preprocess.chains import looks_at_whole

_CALIBRATION = 100
_SHOWN = 8
_JUDGED = 256
DROP = 0.005
"""Of the score out of fold that int8 may cost: less than two seeds of one recipe may differ by."""


@dataclass(frozen=True)
class Judge:
    """Images of the project that a bundle was made of, to calibrate an int8 file and to judge it."""

    images: Images
    names: Sequence[str]
    """Ids of the training images with content."""
    held_out: Sequence[tuple[Sequence[int], Sequence[str]]]
    """For each fold the numbers of the members that were trained without it, and its images."""
    metric: str
    score: Callable[[Iterable[tuple[str, Codes]]], float]
    """Of (id, codes (h, w, k)) under the bundle's rule; higher is better."""
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Id -> name -> number, where the model takes some."""

    def some(self, most: int) -> dict[str, Image]:
        """Return training images, evenly taken."""
        return {name: self.images.checked(name) for name in _evenly(self.names, most)}


def _evenly(names: Sequence[str], most: int) -> list[str]:
    count = min(most, len(names))
    return [names[at * len(names) // count] for at in range(count)]


@dataclass(frozen=True)
class Gate:
    """What int8 costs on held-out images."""

    metric: str
    images: int
    exact: float
    """Score of the members in float32, each on the images that it was trained without."""
    score: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the score falls by no more than what is allowed."""
        return self.exact - self.score <= self.allowed

    def __str__(self) -> str:
        return (
            f"out of fold on {self.images} images: {self.metric} {self.score:.4f}, in float32 {self.exact:.4f} "
            f"(allowed: {self.allowed:g} less)"
        )


@dataclass(frozen=True)
class Exported:
    """What was exported."""

    path: Path
    facts: ExportFacts
    members: int
    bytes: int
    parity: Parity
    gate: Gate | None = None

    def __str__(self) -> str:
        facts = self.facts
        inputs = ", ".join(f"{name} {text}" for name, text in facts.inputs.items())
        size = f"{self.bytes / 2**20:.1f} MiB, {self.members} member{'s' if self.members > 1 else ''}"
        return (
            f"{self.path}: {facts.format} {facts.precision}, {size}; {inputs} -> {facts.output}\n{self.parity}"
            + (f"\n{self.gate}" if self.gate else "")
        )


def export_model(
    model: Path,
    out: Path,
    *,
    format: str,
    precision: str = "fp32",
    mask: bool = False,
    images: Sequence[str | Path] = (),
    judge: Judge | None = None,
    drop: float = DROP,
) -> Exported:
    """Write a bundle as a file for another runtime, with FILE.json beside it, and compare the two.

    Args:
        model: What ``masksmith bundle`` made.
        out: The file; its ending is that of the format.
        format: A key of SUFFIXES.
        precision: One of PRECISIONS of the format.
        mask: Whether masks come out instead of probabilities.
        images: What the two are compared on (at most 16); none: some of the judge's, as they are and cut to odd sizes,
            or generated textures of the training sizes and odd ones.
        judge: Images of the project; "int8" needs them.
        drop: With "int8": by how much the score out of fold may fall.

    Raises:
        InputError: An unknown format, a precision it does not have, an ending of another, a model that no graph can
            hold or a package that is missing; or the file is further from the model than BOUNDS, or scores less.
    """
    _check(out, format, precision, judge, drop)
    exact = one_view(Segmenter(model, device="cpu", runtime="torch"))
    graph = build_graph(exact, mask=mask)
    samples, said = samples_of(exact, images, {} if judge is None else judge.some(_SHOWN))
    int8 = judge if precision == "int8" else None
    calibration = [] if int8 is None else list(int8.some(_CALIBRATION).values())
    with no_room(out), _folder_beside(out) as folder:
        gate = None if int8 is None else _gate(model, Path(folder), int8, calibration, drop)
        if gate is not None and not gate.passed:
            raise InputError(
                f"{out}: {gate}; nothing was written, choose another precision or allow a larger --drop"
            )
        place = Path(folder) / out.name
        logger.info("exporting %d members to %s", len(exact.members), format)
        facts = _write(exact, graph, place, format, precision, calibration)
        resizes = any(
            recipe.size.resizes or recipe.prediction.tta_scales != [1.0] for recipe in exact.bundle.recipes
        )
        bounds = RESIZED if precision == "fp32" and resizes else BOUNDS.get(precision, UNBOUNDED)
        parity = compare(exact, place, facts, samples, said, bounds)
        need_parity(parity, bounds, out)
        facts = replace(facts, parity=asdict(parity), gate=None if gate is None else asdict(gate))
        _write_facts(place, facts, exact.bundle.facts)
        names = [place.with_name(name) for name in facts.files]
        size = sum(one.stat().st_size for one in names)
        for one in (*names[1:], place, facts_path(place)):
            rename(one, out.with_name(one.name))
    return Exported(out, facts, len(exact.members), size, parity, gate)


def _write(
    model: Segmenter, graph: nn.Module, place: Path, format: str, precision: str, calibration: Sequence[Image]
) -> ExportFacts:
    """Write the graph of a model, with its facts beside it."""
    least = WRITERS[format](graph, example_of(model), place, precision, calibration)
    names = [place, place.with_suffix(".bin")] if format == "openvino" else [place]
    mask = isinstance(graph, Masks)
    facts = ExportFacts(
        format=format,
        precision=precision,
        mask=mask,
        files={one.name: file_digest(one) for one in names},
        least_side=least,
        inputs=_inputs_of(model),
        output=_output_of(model, mask=mask),
    )
    _write_facts(place, facts, model.bundle.facts)
    return facts


def _gate(model: Path, folder: Path, judge: Judge, calibration: Sequence[Image], drop: float) -> Gate:
    """Quantize the members of each fold and score them, and the exact ones, on the images of that fold."""
    pairs: list[tuple[Segmenter, Segmenter, list[str]]] = []
    for at, (numbers, names) in enumerate(judge.held_out):
        exact = Segmenter(model, device="cpu", runtime="torch")
        members = [exact.bundle.facts.members[number] for number in numbers]
        exact.bundle.facts = replace(exact.bundle.facts, members=members)
        one_view(exact)
        place = folder / f"gate-{at}.xml"
        _write(exact, build_graph(exact, mask=False), place, "openvino", "int8", calibration)
        pairs.append(
            (exact, ExportedSegmenter(place), _evenly(names, max(1, _JUDGED // len(judge.held_out))))
        )
    count = sum(len(names) for _, _, names in pairs)

    def codes(at: int, what: str) -> Iterator[tuple[str, Codes]]:
        each = [(pair[at], name) for pair in pairs for name in pair[2]]
        for one, name in track(each, total=count, what=what):
            assert isinstance(one, Segmenter)
            yield name, one.predict(judge.images, [name], scalars=judge.numbers)[name]

    scores = judge.score(codes(0, "float32, out of fold")), judge.score(codes(1, "int8, out of fold"))
    return Gate(judge.metric, count, *scores, drop)


@contextmanager
def _folder_beside(out: Path) -> Iterator[str]:
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", suffix=".masksmith-tmp") as folder:
        yield folder


def _check(out: Path, format: str, precision: str, judge: Judge | None, drop: float) -> None:
    suffix = look_up(SUFFIXES, format, where="--format")
    if out.suffix != suffix:
        raise InputError(f"--out: {out}; a file of the format {format} ends in {suffix}")
    if precision not in PRECISIONS[format]:
        raise InputError(
            f"--precision {precision}: {format} has {', '.join(PRECISIONS[format])}"
            + ("; int8 needs --format openvino" if precision == "int8" else "")
        )
    if precision == "int8" and judge is None:
        raise InputError(
            "--precision int8 needs --project, whose training images calibrate it and whose held-out images judge it; "
            "name the project that the model was made of"
        )
    if not drop >= 0:
        raise InputError(f"--drop {drop:g}: expected 0 or more, of the metric")
    if format == "onnx":
        import_onnx("onnx")
        import_onnx("onnxruntime")
    elif format == "openvino":
        import_openvino()
    if precision == "int8":
        import_nncf()


# --- the graph ----------------------------------------------------------------------------------------------


def one_view(model: Segmenter) -> Segmenter:
    """Let a segmenter whose members are not loaded yet see one view of each image, in float32; return it."""
    members = []
    for one in model.bundle.facts.members:
        recipe = {key: dict(value) if isinstance(value, dict) else value for key, value in one.recipe.items()}
        scales = recipe["prediction"]["tta_scales"]
        scale = min(scales, key=lambda one: abs(one - 1))  # nearest to the true size
        recipe["prediction"] |= {"tta": ["identity"], "tta_scales": [scale], "tta_shifts": [[0, 0]]}
        recipe["training"] |= {"precision": "32-true"}
        recipe["model"] |= {"gradient_checkpointing": False}
        members.append(replace(one, recipe=recipe))
    model.bundle.facts = replace(model.bundle.facts, members=members)
    model.bundle.__dict__.pop("recipes", None)  # made of them
    return model


def build_graph(model: Segmenter, *, mask: bool) -> nn.Module:
    """Return a bundle as one network; see graph.

    Raises:
        InputError: Members that cut images into different tiles, or resize them and then cut them; a rule that no
            graph can hold.
    """
    _check_tiles(model)
    if (blend := model.bundle.facts.blend) is not None:
        raise InputError(
            f"{model.bundle.path}: its members' mean is of the kind {blend['kind']}, and the exported file can average "
            "alone; `masksmith blend PROJECT --off`, or bundle one --run"
        )
    _check_chains(model)
    dtype, names, members = np.dtype(model.bundle.facts.dtype), model.model_scalars, []
    for one in model.members:
        drops = one.recipe.prediction.planes(model.target.outputs) > model.planes
        largest = 1.0 if dtype.kind != "u" else float(np.iinfo(dtype).max)
        scale = TypeMax(largest) if one.scaler is None else Scaled(one.scaler, floating=dtype.kind == "f")
        members.append(
            Member(
                one.models,
                scale=scale,
                size=one.recipe.size,
                combine=mask_only if drops else build_combine(one.recipe.prediction),
                shares=one.recipe.prediction.shares(len(one.models)),
                view=one.recipe.prediction.tta_scales[0],
                scalars=[names.index(name) for name in one.recipe.model.scalars],
            )
        )
    graph = Ensemble(members, [one.facts.weight for one in model.members])
    same_padding(graph)
    return (Masks(graph, model.rule) if mask else graph).eval().requires_grad_(False)


def _check_tiles(model: Segmenter) -> None:
    tilings = {Tiling.of(recipe.prediction) for recipe in model.bundle.recipes}
    borders = {recipe.size.border for recipe in model.bundle.recipes}
    if len(tilings) > 1 or (tilings != {None} and len(borders) > 1):
        raise InputError(
            f"{model.bundle.path}: its members cut images into different tiles, which one file cannot do; bundle those "
            "of one recipe"
        )
    for recipe in model.bundle.recipes:
        tiling, hw = Tiling.of(recipe.prediction), recipe.size.resize_hw
        if tiling is not None and hw is not None and tiling.plan(hw) is not None:
            raise InputError(
                f"{model.bundle.path}: images are resized to {hw[0]}x{hw[1]} and then cut into tiles, which one graph "
                "cannot do; use the bundle itself"
            )
        if tiling is not None and recipe.prediction.tta_scales != [1.0]:
            raise InputError(
                f"{model.bundle.path}: images are seen at the scale {recipe.prediction.tta_scales[0]:g} and then cut "
                "into tiles, which one graph cannot do; use the bundle itself"
            )


def _check_chains(model: Segmenter) -> None:
    for recipe in model.bundle.recipes:
        if whole := [step.name for step in recipe.input.chain if looks_at_whole([step])]:
            raise InputError(
                f"{model.bundle.path}: input.chain: {', '.join(whole)} look{'s' * (len(whole) == 1)} at an image's "
                "histogram, which no graph can hold; nothing was written, use the bundle itself (`masksmith apply`, "
                "`serve`, `pack`)"
            )


def example_of(model: Segmenter) -> tuple[Tensor, ...]:
    """Return inputs of a graph, two images of odd sizes, to trace it with."""
    facts, sizes = model.bundle.facts, [one.recipe.size for one in model.members]
    divisors = [one.model.divisor for one in model.members]
    side = 4 * max(32, *divisors) + 5  # so that no map is of one pixel, a special case
    side = min([side, *(one.largest_side or side for one in sizes)])
    shape = (2, side, side - 2, facts.channels)
    pixels = stream(0, 0, 0, 0).integers(0, 200, shape).astype(facts.dtype)
    numbers = (torch.zeros(2, len(model.model_scalars)),) if model.model_scalars else ()
    return (torch.from_numpy(pixels), *numbers)


def _inputs_of(model: Segmenter) -> dict[str, str]:
    facts = model.bundle.facts
    inputs = {"image": f"(b, h, w, {facts.channels}) {facts.dtype}"}
    return inputs | (
        {"scalars": f"(b, {len(model.model_scalars)}) float32: {', '.join(model.model_scalars)}"}
        if model.model_scalars
        else {}
    )


def _output_of(model: Segmenter, *, mask: bool) -> str:
    classes = ", ".join(model.classes)
    if not mask:
        planes = "foreground, border, distance" if model.task == "instances" else classes
        heads = ", of each the image head" if model.planes > model.target.outputs else ""
        return f"probs (b, h, w, {model.planes}) float32: {planes}{heads}"
    return f"mask (b, h, w{', k' if model.task == 'multilabel' else ''}) uint8: {classes}"


def _write_facts(path: Path, export: ExportFacts, model: ModelFacts) -> None:
    facts = {"format": format_of(model), **asdict(model)}
    write_json(facts_path(path), {"export": asdict(export), "model": facts})
