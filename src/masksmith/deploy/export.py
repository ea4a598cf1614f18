"""Export a bundle as one file for another runtime: ONNX, OpenVINO or torch.export.

The whole ensemble is in the file, from raw pixels to probabilities at the image's size (see graph). The finished file
is compared with the bundle's own model before it gets its name; one that is too far from it is removed.

ONNX goes through torch's TorchScript exporter: of EfficientNet-lite0's U-Net it makes the file in 2 s, the newer one
(``dynamo=True``) had not finished after 300 s (torch 2.13, shapes of any size).
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from masksmith.core.arrays import Codes, Image, Shaped
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.core.files import file_digest, no_room, rename, write_json
from masksmith.core.progress import logger, track
from masksmith.core.randomness import stream
from masksmith.data.array_store import ArrayStore
from masksmith.data.look import is_constant
from masksmith.deploy.bundle import FORMAT_VERSION, ModelFacts
from masksmith.deploy.exported import (
    SUFFIXES,
    ExportedSegmenter,
    ExportFacts,
    facts_path,
    import_onnx,
    open_file,
)
from masksmith.deploy.graph import Ensemble, Masks, Member, Scaled, TypeMax, same_padding
from masksmith.deploy.listing import list_items
from masksmith.deploy.segmenter import Segmenter
from masksmith.postprocess.classes import ClassRule
from masksmith.postprocess.labels import LabelRules
from masksmith.postprocess.objects import ObjectRule
from masksmith.postprocess.rules import AnyRule
from masksmith.prediction.combine import build_combine
from masksmith.prediction.runtimes import import_openvino
from masksmith.prediction.store import MAX_CODE
from masksmith.prediction.tiles import Tiling
from masksmith.preprocess.chains import looks_at_whole

PRECISIONS = {
    "onnx": ("fp32", "fp16"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
    "torch": ("fp32",),
}
"""Format -> in what it is stored (fp16, int8) or computed (bf16)."""
_OPSET = 17
_MOST_IMAGES = 16
_MOST_SIDE = 1024
_CALIBRATION = 100


@dataclass(frozen=True)
class Bounds:
    """How far an exported file may be from the bundle's model in float32."""

    largest: float
    """Difference of a probability."""
    mean: float
    flips: float
    """Share of the pixels that change sides."""


RESIZED = Bounds(1, 0.005, 0.0025)
"""Of fp32, where images are resized: OpenCV resizes those of 8 bits with weights of 11 bits."""
BOUNDS = {
    "fp32": Bounds(1e-3, 1e-3, 0.0025),
    "fp16": Bounds(1, 0.005, 0.0025),
    "bf16": Bounds(1, 0.005, 0.0025),
    "int8": Bounds(1, 0.02, 0.02),
}


@dataclass(frozen=True)
class Parity:
    """How an exported file differed from the bundle's model, both seeing one view of each image."""

    images: str
    """In words."""
    largest: float | None
    """Difference of a probability; None: masks were compared."""
    mean: float | None
    flips: float
    """Share of the pixels that change sides of the rule's threshold, or their class."""
    seconds: float
    """For an image; the first of each size apart."""
    torch_seconds: float

    def __str__(self) -> str:
        told = f"{self.flips:.4%} of the pixels change sides"
        if self.largest is not None:
            told = f"largest difference {self.largest:.2g}, mean {self.mean:.2g}, {told}"
        speed = f"{self.seconds:.3f} s an image, torch {self.torch_seconds:.3f} s"
        return f"against torch on {self.images}: {told}; {speed}"


@dataclass(frozen=True)
class Exported:
    """What was exported."""

    path: Path
    facts: ExportFacts
    members: int
    bytes: int
    parity: Parity

    def __str__(self) -> str:
        facts = self.facts
        inputs = ", ".join(f"{name} {text}" for name, text in facts.inputs.items())
        size = f"{self.bytes / 2**20:.1f} MiB, {self.members} member{'s' if self.members > 1 else ''}"
        return f"{self.path}: {facts.format} {facts.precision}, {size}; {inputs} -> {facts.output}\n{self.parity}"


def export_model(
    model: Path,
    out: Path,
    *,
    format: str,
    precision: str = "fp32",
    mask: bool = False,
    images: Sequence[str | Path] = (),
    calibrate: Sequence[str | Path] = (),
) -> Exported:
    """Write a bundle as a file for another runtime, with FILE.json beside it, and compare the two.

    Args:
        model: What ``masksmith bundle`` made.
        out: The file; its ending is that of the format.
        format: A key of SUFFIXES.
        precision: One of PRECISIONS of the format.
        mask: Whether masks come out instead of probabilities.
        images: What the two are compared on (at most 16); none: generated textures of the training sizes and odd ones.
        calibrate: With "int8": images whose values the scales are made for (at most 100).

    Raises:
        InputError: An unknown format, a precision it does not have, an ending of another, a model that no graph can
            hold or a package that is missing; or the file is further from the model than BOUNDS.
    """
    _check(out, format, precision, calibrate)
    exact = one_view(Segmenter(model, device="cpu", runtime="torch"))
    graph = build_graph(exact, mask=mask)
    samples, said = _samples(exact, images)
    fitted = _images_of(exact, calibrate, most=_CALIBRATION) if calibrate else {}
    with no_room(out), _folder_beside(out) as folder:
        place = Path(folder) / out.name
        logger.info("exporting %d members to %s", len(exact.members), format)
        least = WRITERS[format](graph, example_of(exact), place, precision, list(fitted.values()))
        names = [place, place.with_suffix(".bin")] if format == "openvino" else [place]
        facts = ExportFacts(
            format=format,
            precision=precision,
            mask=mask,
            files={one.name: file_digest(one) for one in names},
            least_side=least,
            inputs=_inputs_of(exact),
            output=_output_of(exact, mask=mask),
        )
        parity = _compare(exact, place, facts, samples, said)
        resizes = any(recipe.size.resizes for recipe in exact.bundle.recipes)
        _need_parity(parity, RESIZED if precision == "fp32" and resizes else BOUNDS[precision], out)
        facts = replace(facts, parity=asdict(parity))
        _write_facts(place, facts, exact.bundle.facts)
        size = sum(one.stat().st_size for one in names)
        for one in (*names[1:], place, facts_path(place)):
            rename(one, out.with_name(one.name))
    return Exported(out, facts, len(exact.members), size, parity)


@contextmanager
def _folder_beside(out: Path) -> Iterator[str]:
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", suffix=".masksmith-tmp") as folder:
        yield folder


def _check(out: Path, format: str, precision: str, calibrate: Sequence[str | Path]) -> None:
    suffix = look_up(SUFFIXES, format, where="--format")
    if out.suffix != suffix:
        raise InputError(f"--out: {out}; a file of the format {format} ends in {suffix}")
    if precision not in PRECISIONS[format]:
        raise InputError(
            f"--precision {precision}: {format} has {', '.join(PRECISIONS[format])}"
            + ("; int8 needs --format openvino" if precision == "int8" else "")
        )
    if (precision == "int8") != bool(calibrate):
        raise InputError(
            "--precision int8 needs --calibrate FOLDER with some images like those it will see, and no other does"
        )
    if format == "onnx":
        import_onnx("onnx")
        import_onnx("onnxruntime")
    elif format == "openvino":
        import_openvino()
    if precision == "int8":
        _import_nncf()


def _import_nncf() -> Any:  # noqa: ANN401
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import nncf  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(
            f"--precision int8 needs nncf, which cannot be imported ({error}); run `pip install nncf`, or choose "
            "another precision"
        ) from error
    return nncf


# --- the graph ----------------------------------------------------------------------------------------------


def one_view(model: Segmenter) -> Segmenter:
    """Let a segmenter whose members are not loaded yet see one view of each image, in float32; return it."""
    members = []
    for one in model.bundle.facts.members:
        recipe = {key: dict(value) if isinstance(value, dict) else value for key, value in one.recipe.items()}
        recipe["prediction"] |= {"tta": ["identity"], "tta_scales": [1.0], "tta_shifts": [[0, 0]]}
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
    dtype, names, members = np.dtype(model.bundle.facts.dtype), model.scalars, []
    for one in model.members:
        largest = 1.0 if dtype.kind != "u" else float(np.iinfo(dtype).max)
        scale = TypeMax(largest) if one.scaler is None else Scaled(one.scaler, floating=dtype.kind == "f")
        members.append(
            Member(
                one.models,
                scale=scale,
                size=one.recipe.size,
                combine=build_combine(one.recipe.prediction),
                shares=one.recipe.prediction.shares(len(one.models)),
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


def _check_chains(model: Segmenter) -> None:
    for recipe in model.bundle.recipes:
        if looks_at_whole(recipe.input.chain):
            names = ", ".join(step.name for step in recipe.input.chain)
            raise InputError(
                f"{model.bundle.path}: input.chain ({names}) looks at an image's histogram, which no graph can hold; "
                "use the bundle itself (`masksmith apply`, `serve`, `pack`)"
            )


def example_of(model: Segmenter) -> tuple[Tensor, ...]:
    """Return inputs of a graph, two images of odd sizes, to trace it with."""
    facts, sizes = model.bundle.facts, [one.recipe.size for one in model.members]
    divisors = [one.model.divisor for one in model.members]
    side = 4 * max(32, *divisors) + 5  # so that no map is of one pixel, a special case
    side = min([side, *(one.largest_side or side for one in sizes)])
    shape = (2, side, side - 2, facts.channels)
    pixels = stream(0, 0, 0, 0).integers(0, 200, shape).astype(facts.dtype)
    numbers = (torch.zeros(2, len(model.scalars)),) if model.scalars else ()
    return (torch.from_numpy(pixels), *numbers)


def _inputs_of(model: Segmenter) -> dict[str, str]:
    facts = model.bundle.facts
    inputs = {"image": f"(b, h, w, {facts.channels}) {facts.dtype}"}
    return inputs | (
        {"scalars": f"(b, {len(model.scalars)}) float32: {', '.join(model.scalars)}"} if model.scalars else {}
    )


def _output_of(model: Segmenter, *, mask: bool) -> str:
    classes = ", ".join(model.classes)
    if not mask:
        planes = "foreground, border, distance" if model.task == "instances" else classes
        return f"probs (b, h, w, {model.target.outputs}) float32: {planes}"
    return f"mask (b, h, w{', k' if model.task == 'multilabel' else ''}) uint8: {classes}"


# --- formats ------------------------------------------------------------------------------------------------


def _traceable(example: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the example in a type that the tracing exporters know: they have no uint16."""
    return tuple(one.int() if one.dtype == torch.uint16 else one for one in example)


def _names_of(example: Sequence[Tensor]) -> list[str]:
    return ["image", "scalars"][: len(example)]


def _converted(what: str, convert: Callable[[], Any]) -> Any:  # noqa: ANN401
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing reads sizes; the comparison tells if the result is right
        try:
            return convert()
        except OSError:  # of the disk
            raise
        except Exception as error:  # each exporter has errors of its own
            first = str(error).strip().splitlines()[:1]
            raise InputError(
                f"--format {what}: this network cannot be converted ({type(error).__name__}: {' '.join(first)}); "
                "choose another format, or use the bundle itself"
            ) from error


def _write_onnx(
    graph: nn.Module, example: Sequence[Tensor], path: Path, precision: str, calibration: Sequence[Image]
) -> int:
    del calibration
    onnx, names = import_onnx("onnx"), _names_of(example)
    output = "mask" if isinstance(graph, Masks) else "probs"
    _converted(
        "onnx",
        lambda: torch.onnx.export(
            graph,
            _traceable(example),
            path,
            dynamo=False,
            opset_version=_OPSET,
            input_names=names,
            output_names=[output],
            dynamic_axes={
                "image": {0: "b", 1: "h", 2: "w"},
                "scalars": {0: "b"},
                output: {0: "b", 1: "h", 2: "w"},
            },
        ),
    )
    proto = onnx.load(path)
    if example[0].dtype == torch.uint16:
        proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT16
    if precision == "fp16":
        proto = _converted("onnx", lambda: _to_half(proto))
    proto.producer_name = "masksmith"
    onnx.save(proto, path)
    return 1


def _to_half(proto: Any) -> Any:  # noqa: ANN401
    """Store and compute encoders and decoders in float16; what comes before and after, and the heads, stay float32."""
    half = import_onnx("onnxruntime.transformers.float16")
    kept = [node.name for node in proto.graph.node if not _is_inner(node.name)]
    return half.convert_float_to_float16(proto, keep_io_types=True, node_block_list=kept)


def _is_inner(name: str) -> bool:
    """Whether an operation, named /MODULE/…/OPERATION, belongs to a part of a model other than its head."""
    inner = name.partition("/models.")[2].split("/")  # 0, encoder, …, Conv
    return len(inner) > 2 and inner[1] != "head"


def _write_openvino(
    graph: nn.Module, example: Sequence[Tensor], path: Path, precision: str, calibration: Sequence[Image]
) -> int:
    openvino, inputs = import_openvino(), _traceable(example)
    shapes = [[-1, -1, -1, inputs[0].shape[3]], *([-1, one.shape[1]] for one in inputs[1:])]

    def convert() -> Any:  # noqa: ANN401
        traced: Any = torch.jit.trace(graph, inputs, check_trace=False)
        network = openvino.convert_model(traced, example_input=inputs, input=shapes)
        for one, name in zip(network.inputs, _names_of(example), strict=True):
            one.get_tensor().set_names({name})
        network.outputs[0].get_tensor().set_names({"mask" if isinstance(graph, Masks) else "probs"})
        if example[0].dtype == torch.uint16:
            network.inputs[0].get_node().set_element_type(openvino.Type.u16)
            network.validate_nodes_and_infer_types()
        return network

    network = _converted("openvino", convert)
    if precision == "int8":
        nncf = _import_nncf()
        data = nncf.Dataset([{"image": image[None]} for image in calibration])
        network = _converted("openvino", lambda: nncf.quantize(network, data, subset_size=len(calibration)))
    openvino.save_model(network, path, compress_to_fp16=precision == "fp16")
    return 1


def _write_torch(
    graph: nn.Module, example: Sequence[Tensor], path: Path, precision: str, calibration: Sequence[Image]
) -> int:
    del precision, calibration
    import torch.fx.experimental._config as config

    divisors = [one.divisor for one in graph.modules() if isinstance(one, Member)]
    least = max(divisors) + 1  # torch makes a constant of a map of one pixel
    sides = {at: torch.export.Dim(name, min=least, max=2**15) for at, name in ((1, "h"), (2, "w"))}
    batch = torch.export.Dim("b", min=1, max=2**12)
    shapes = ({0: batch, **sides}, *({0: batch} for _ in example[1:]))

    def convert() -> Any:  # noqa: ANN401
        program = torch.export.export(
            graph,
            tuple(example),
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        torch.export.save(program, path)

    patch: Any = config
    with patch.patch(backed_size_oblivious=True):  # or a batch of one would need a file of its own
        _converted("torch", convert)
    return least


Writer = Callable[[nn.Module, Sequence[Tensor], Path, str, Sequence[Image]], int]
WRITERS: dict[str, Writer] = {"onnx": _write_onnx, "openvino": _write_openvino, "torch": _write_torch}
"""Format -> what writes a graph and returns the least side of an image, in pixels."""


def _write_facts(path: Path, export: ExportFacts, model: ModelFacts) -> None:
    facts = {"format": 1 if model.blend is None else FORMAT_VERSION, **asdict(model)}
    write_json(facts_path(path), {"export": asdict(export), "model": facts})


# --- parity -------------------------------------------------------------------------------------------------


def _samples(model: Segmenter, images: Sequence[str | Path]) -> tuple[dict[str, Image], str]:
    """Return what the file is compared on, and what that is, in words."""
    found = _images_of(model, images, most=_MOST_IMAGES) if images else textures(model)
    given = {
        name: image for name, image in found.items() if not is_constant(image)
    }  # those are not looked at
    if not given:
        raise InputError(
            f"--images: all {len(found)} images are of one value each; expected some with content"
        )
    sizes = sorted({one.shape[:2] for one in given.values()})
    shown = " … ".join(f"{height}x{width}" for height, width in dict.fromkeys((sizes[0], sizes[-1])))
    return given, f"{len(given)} {'images' if images else 'generated textures'} ({shown})"


def _images_of(model: Segmenter, inputs: Sequence[str | Path], *, most: int) -> dict[str, Image]:
    """Return images of files, evenly taken, as the model takes them.

    Raises:
        InputError: There is none, or one cannot be used.
    """
    items, found = list_items(inputs), {}
    chosen = [items[at] for at in sorted({round(at) for at in np.linspace(0, len(items) - 1, most)})]
    for item in track(chosen, total=len(chosen), what="reading images"):
        path = item.path if item.reader.count(item.path) == 1 else f"{item.path}#0"
        found[item.id] = model.fit(item.reader.image(path), where=item.path)
    return found


def textures(model: Segmenter) -> dict[str, Image]:
    """Return generated images of the training set's sizes and of odd ones, in the range of its values."""
    facts = model.bundle.facts
    dtype, ranges = np.dtype(facts.dtype), facts.ranges
    sizes = dict.fromkeys(_sizes_of(model))
    found: dict[str, Image] = {}
    for at, (height, width) in enumerate(sizes):
        random = stream(0, 0, 0, at)
        planes = []
        for band in range(facts.channels):
            low = ranges.get(f"band {band} dark", [0.0])[0]
            high = ranges.get(f"band {band} bright", [255.0 if dtype == np.uint8 else 1000.0])[-1]
            coarse = (
                random.random((height // 8 + 1, width // 8 + 1)).repeat(8, 0).repeat(8, 1)[:height, :width]
            )
            unit = 0.8 * coarse + 0.2 * random.random((height, width))
            planes.append(low + (high - low) * unit)
        found[f"{height}x{width}"] = np.stack(planes, 2).astype(dtype)
    return found


def _sizes_of(model: Segmenter) -> Iterator[tuple[int, int]]:
    ranges, most = model.bundle.facts.ranges, _MOST_SIDE
    for recipe in model.bundle.recipes:
        most = min(most, recipe.size.largest_side or most)
    sides = [
        [min(round(side), most) for side in ranges.get(name, [128, 256])] for name in ("height", "width")
    ]
    (low_h, high_h), (low_w, high_w) = sides
    yield from ((low_h, low_w), (high_h, high_w))
    least = min(most, 33)
    for height, width in ((low_h + 1, high_w + 7), (high_h - 7, low_w * 2 + 1), (3 * low_h // 2, low_w - 1)):
        yield min(max(height | 1, least), most), min(max(width | 1, least), most)


def sides(rule: AnyRule, codes: Codes) -> Shaped[np.ndarray, "..."]:
    """Return on which side of its rule's thresholds each pixel lies, or its class."""
    if isinstance(rule, ClassRule):
        return rule.apply(codes)
    if isinstance(rule, ObjectRule):
        return (codes[..., :1] > rule.foreground).astype(np.uint8)
    rules = rule.rules if isinstance(rule, LabelRules) else (rule,)
    return (codes > np.array([one.bottom for one in rules])).astype(np.uint8)


def _compare(
    model: Segmenter, path: Path, facts: ExportFacts, samples: Mapping[str, Image], said: str
) -> Parity:
    numbers = {name: dict.fromkeys(model.scalars, 0.0) for name in samples}

    def of(segmenter: Segmenter) -> Predict:
        return lambda name, image: segmenter.predict(ArrayStore({name: image}), [name], scalars=numbers)[name]

    exact, torch_seconds = _timed(of(model), samples, "segmenting with torch")
    expected = {name: sides(model.rule, codes) for name, codes in exact.items()}
    if facts.mask:
        expected = {name: model.rule.apply(codes) for name, codes in exact.items()}
        run, zeros = open_file(path, facts), np.zeros((1, len(model.scalars)), np.float32)
        more = {"scalars": zeros} if model.scalars else {}
        masks, seconds = _timed(
            lambda _, image: run({"image": image[None]} | more)[0], samples, "making masks"
        )
        flips = _share(masks[name] != one for name, one in expected.items())
        return Parity(said, None, None, flips, seconds, torch_seconds)
    _write_facts(path, facts, model.bundle.facts)
    codes, seconds = _timed(of(ExportedSegmenter(path)), samples, "segmenting with the file")
    apart = [np.abs(one.astype(np.float64) - exact[name]) / MAX_CODE for name, one in codes.items()]
    largest, mean = max(float(one.max()) for one in apart), float(np.mean([one.mean() for one in apart]))
    flips = _share(sides(model.rule, one) != expected[name] for name, one in codes.items())
    return Parity(said, largest, mean, flips, seconds, torch_seconds)


Predict = Callable[[str, Image], np.ndarray]


def _timed(predict: Predict, samples: Mapping[str, Image], what: str) -> tuple[dict[str, np.ndarray], float]:
    """Return what is predicted of each image, and the median of the seconds."""
    found, seconds = {}, []
    for name, image in track(samples.items(), total=len(samples), what=what):
        start = time.perf_counter()
        found[name] = predict(name, image)
        seconds.append(time.perf_counter() - start)
    return found, float(np.median(seconds))


def _share(each: Iterable[Shaped[np.ndarray, "..."]]) -> float:
    """Return the share of true pixels."""
    counts = [(int(one.sum()), one.size) for one in each]
    return sum(true for true, _ in counts) / sum(size for _, size in counts)


def _need_parity(parity: Parity, bounds: Bounds, out: Path) -> None:
    measured = {
        "largest difference": (parity.largest, bounds.largest),
        "mean difference": (parity.mean, bounds.mean),
    }
    for name, (value, most) in (
        measured | {"share of pixels that change sides": (parity.flips, bounds.flips)}
    ).items():
        if value is not None and not value <= most:
            raise InputError(
                f"{out}: the {name} is {value:.4g}, more than {most:g} ({parity}); the file was removed, choose "
                "another precision or format"
            )
