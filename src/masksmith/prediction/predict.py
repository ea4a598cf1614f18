"""Predict a store of images: batches of one canvas, test-time augmentation, probabilities at the true size.

Large images go through the model in tiles, and their probabilities come out in bands of rows.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from masksmith.core.arrays import Float, Shaped, UInt16
from masksmith.core.progress import track
from masksmith.data.array_store import Images
from masksmith.data.store import StoreWriter
from masksmith.models.segmentation import SegmentationModel
from masksmith.prediction.runtimes import Runtime, torch_runtime
from masksmith.prediction.store import to_codes
from masksmith.prediction.tiles import Assembly, Cutter, Part, TilePlan, Tiling, first_needed, tiles_of
from masksmith.prediction.tta import View, views_of
from masksmith.preprocess import TRUE_SIZE, Frame, SizeConfig, names_by_canvas


class PredictOptions(TypedDict, total=False):
    """What is optional of predict_parts, and of what is built on it; see there."""

    size: SizeConfig
    scales: Sequence[float]
    shifts: Sequence[tuple[int, int]]
    mirror: tuple[int, ...]
    tiling: Tiling | None
    what: str
    runtime: Runtime | Sequence[Runtime] | None
    shares: Sequence[float] | None
    scalars: Mapping[str, Sequence[float]] | None
    finished: Collection[str]


class _Piece(NamedTuple):
    """What goes through the model as one image: an image, or a tile of one."""

    name: str
    plan: TilePlan | None = None
    row: int = 0
    column: int = 0


class _Work:
    """The pieces of the images that are to be predicted, in batches, and the probabilities that come of them.

    Batches do not depend on what is finished: the last bits of a probability depend on how many images go through the
    model together.
    """

    def __init__(
        self, images: Images, names: Sequence[str], size: SizeConfig, tiling: Tiling | None, *, divisor: int
    ) -> None:
        self.images, self.tiling = images, tiling
        self.plans = {name: self._plan_of(name, size) for name in names}
        tiled = any(self.plans.values())
        self.size = SizeConfig(border=size.border) if tiled and size.resize_hw else size
        """The size rule of the pieces: tiles are of images that are resized already."""
        self.cutter = Cutter(images, size)
        pieces = {name: images.shape(name) if plan is None else plan.hw for name, plan in self.plans.items()}
        self.by_canvas = list(names_by_canvas(pieces, self.size, divisor=divisor).values())
        self._open: dict[str, Assembly] = {}

    def _plan_of(self, name: str, size: SizeConfig) -> TilePlan | None:
        return None if self.tiling is None else self.tiling.plan(size.inner_hw(self.images.shape(name)))

    def _pieces(self, names: Sequence[str]) -> Iterator[_Piece]:
        for name in names:
            plan = self.plans[name]
            if plan is None:
                yield _Piece(name)
            else:
                yield from (_Piece(name, plan, row, column) for row, column in tiles_of(plan))

    def batches(
        self, batch_size: int, finished: Collection[str], rows: Mapping[str, int]
    ) -> Iterator[list[_Piece]]:
        """Yield the batches with a piece that is neither in ``finished`` nor in the first rows of its image."""

        def is_wanted(piece: _Piece) -> bool:
            if piece.name in finished:
                return False
            if piece.plan is None or piece.name not in rows:
                return True
            needed = first_needed(piece.plan, self.images.shape(piece.name), rows[piece.name])
            return piece.plan.rows.on_image(piece.plan.rows.starts[piece.row]).stop > needed

        for names in self.by_canvas:
            pieces = self._pieces(names)
            while batch := list(islice(pieces, batch_size)):
                if any(map(is_wanted, batch)):
                    yield batch

    def _assembly(self, piece: _Piece, rows: Mapping[str, int]) -> Assembly:
        assert piece.plan is not None
        assert self.tiling is not None
        true_hw = self.images.shape(piece.name)
        return Assembly(piece.plan, self.tiling.weights, true_hw, done=rows.get(piece.name, 0))

    def planes(self, piece: _Piece) -> Shaped[np.ndarray, "_ _ c"]:
        """Return the pixels of a piece."""
        if piece.plan is None:
            return self.images.checked(piece.name)
        return self.cutter.tile(piece.name, piece.plan, piece.row, piece.column)

    def take(
        self,
        piece: _Piece,
        probs: Float[np.ndarray, "_ _ k"],
        finished: Collection[str],
        rows: Mapping[str, int],
    ) -> Part | None:
        """Take the probabilities of a piece, and return the rows of its image that are ready; None where none are."""
        if piece.plan is None:
            return Part(0, probs)
        if piece.name in finished:
            return None
        if piece.name not in self._open:
            self._open[piece.name] = self._assembly(piece, rows)
        part = self._open[piece.name].add(piece.row, piece.column, probs)
        if piece.plan.is_last(piece.row, piece.column):
            del self._open[piece.name]
        return part


def _forward(
    runtimes: Sequence[Runtime],
    shares: Sequence[float] | None,
    frames: Sequence[Frame],
    images: Sequence[Shaped[np.ndarray, "_ _ c"]],
    max_value: int,
    scalars: Float[np.ndarray, "b s"] | None,
    activation: Callable[[Tensor], Tensor],
) -> list[Float[np.ndarray, "_ _ k"]]:
    """Return the mean probabilities of all runtimes for one view of a batch, each at the size that is seen.

    ``shares`` are what the runtimes weigh in the mean; None: the same.
    """
    framed = np.stack(
        [frame.apply(np.ascontiguousarray(one)) for frame, one in zip(frames, images, strict=True)]
    )
    planes = (framed.astype(np.float32) / max_value).transpose(0, 3, 1, 2)  # (b, h, w, c) -> (b, c, h, w)
    inputs = (planes,) if scalars is None else (planes, scalars)
    each = [activation(torch.from_numpy(runtime(*inputs))) for runtime in runtimes]
    mean = mean_of(each, shares)
    probs = mean.permute(0, 2, 3, 1).numpy()  # (b, k, h, w) -> (b, h, w, k)
    return [frame.undo(one) for frame, one in zip(frames, probs, strict=True)]


def mean_of(each: Sequence[Tensor], shares: Sequence[float] | None) -> Tensor:
    """Return the mean of tensors of one shape, weighted where ``shares`` are given."""
    if len(each) == 1:
        return each[0]
    stacked = torch.stack(list(each))
    if shares is None:
        return stacked.mean(0)
    weights = torch.tensor(shares, dtype=stacked.dtype, device=stacked.device)
    return torch.tensordot(weights / weights.sum(), stacked, dims=1)


def predict_parts(
    fabric: Fabric,
    model: SegmentationModel,
    images: Images,
    names: Sequence[str],
    *,
    tta: Sequence[str],
    batch_size: int,
    size: SizeConfig = TRUE_SIZE,
    scales: Sequence[float] = (1.0,),
    shifts: Sequence[tuple[int, int]] = ((0, 0),),
    mirror: tuple[int, ...] = (),
    tiling: Tiling | None = None,
    what: str = "predicting",
    runtime: Runtime | Sequence[Runtime] | None = None,
    shares: Sequence[float] | None = None,
    scalars: Mapping[str, Sequence[float]] | None = None,
    finished: Collection[str] = (),
    rows: Mapping[str, int] | None = None,
) -> Iterator[list[tuple[str, Part]]]:
    """Yield, batch by batch, (id, probabilities (n, w, k) of rows of the image at its true size).

    A batch has one canvas (see names_by_canvas). An image that is predicted whole is one part; of a larger one the
    rows come one after another, as soon as no later tile touches them, so that memory does not grow with its height.

    Args:
        fabric: Device and precision.
        model: The model; evaluated in evaluation mode, and put back into its own mode.
        images: The images.
        names: Ids to predict.
        tta: Keys of TTA whose probabilities are averaged.
        batch_size: Images or tiles per forward pass.
        size: How images are resized and padded.
        scales: Each view is made at each of these scales.
        shifts: And with each of these numbers of rows and columns of border before the image.
        mirror: The class that each class becomes in a mirror image.
        tiling: How larger images are cut into tiles; None: all are predicted whole.
        what: Text of the progress bar.
        runtime: Computes the logits; None: the model itself. The probabilities of several runtimes are averaged.
        shares: What each of several runtimes weighs in their mean; None: the same.
        scalars: Id -> numbers, for a model that takes them.
        finished: Ids to leave out, in whole batches only: the last bits of a probability depend on how many images
            go through the model together.
        rows: Id -> its first rows that are not wanted again, as they came before.

    Raises:
        InputError: An unknown key of TTA, or a damaged image.
    """
    views = views_of(tta, scales, shifts, mirror)
    max_value = int(np.iinfo(images.dtype).max)
    work, begun = _Work(images, names, size, tiling, divisor=model.divisor), rows or {}
    runtime = runtime or torch_runtime(fabric, model)
    runtimes = [runtime] if callable(runtime) else list(runtime)
    activation = partial(torch.softmax, dim=1) if model.exclusive else torch.sigmoid
    total = sum(1 for _ in work.batches(batch_size, finished, begun))

    def predict(view: View, planes: Sequence[np.ndarray], numbers: np.ndarray | None) -> list[np.ndarray]:
        seen = [view.apply(one) for one in planes]
        frames = [view.frame((one.shape[0], one.shape[1]), work.size, model.divisor) for one in seen]
        found: dict[int, np.ndarray] = {}
        for canvas in dict.fromkeys(
            frame.canvas_hw for frame in frames
        ):  # one, but at another scale or shift
            at = [i for i, frame in enumerate(frames) if frame.canvas_hw == canvas]
            own = None if numbers is None else numbers[at]
            probs = _forward(
                runtimes, shares, [frames[i] for i in at], [seen[i] for i in at], max_value, own, activation
            )
            found |= dict(zip(at, probs, strict=True))
        return [view.undo(found[i]) for i in range(len(seen))]

    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in track(work.batches(batch_size, finished, begun), total=total, what=what):
                planes = [work.planes(piece) for piece in batch]
                numbers = np.array([scalars[one.name] for one in batch], np.float32) if scalars else None
                each = [predict(view, planes, numbers) for view in views]
                means = ((piece, np.mean(probs, axis=0)) for piece, *probs in zip(batch, *each, strict=True))
                taken = [(piece.name, work.take(piece, mean, finished, begun)) for piece, mean in means]
                yield [(name, part) for name, part in taken if part is not None]
    finally:
        model.train(training)


def predict_batches(
    fabric: Fabric,
    model: SegmentationModel,
    images: Images,
    names: Sequence[str],
    *,
    tta: Sequence[str],
    batch_size: int,
    **options: Unpack[PredictOptions],
) -> Iterator[list[tuple[str, Float[np.ndarray, "h w k"]]]]:
    """Yield batches of (id, probabilities (h, w, k) at the true size); the arguments are those of predict_parts.

    A large image is held in memory as a whole, and comes with the batch of its last tile.
    """
    begun: dict[str, list[np.ndarray]] = {}
    for parts in predict_parts(fabric, model, images, names, tta=tta, batch_size=batch_size, **options):
        whole = []
        for name, part in parts:
            bands = begun.setdefault(name, [])
            bands.append(part.probs)
            if part.first + len(part.probs) == images.shape(name)[0]:
                del begun[name]
                whole.append((name, bands[0] if len(bands) == 1 else np.concatenate(bands)))
        if whole:
            yield whole


def predict_probs(
    fabric: Fabric,
    model: SegmentationModel,
    images: Images,
    names: Sequence[str],
    *,
    tta: Sequence[str],
    batch_size: int,
    **options: Unpack[PredictOptions],
) -> Iterator[tuple[str, Float[np.ndarray, "h w k"]]]:
    """Yield (id, probabilities (h, w, k)) one by one; the arguments are those of predict_parts."""
    for batch in predict_batches(fabric, model, images, names, tta=tta, batch_size=batch_size, **options):
        yield from batch


def write_codes(
    path: Path,
    images: Images,
    names: Sequence[str],
    batches: Callable[..., Iterable[Sequence[tuple[str, Shaped[np.ndarray, "h w k"] | Part]]]],
    *,
    blank: Collection[str],
    channels: int = 1,
    key: str | None = None,
) -> None:
    """Write probabilities as codes into a store in the order of ``names``.

    Args:
        path: The ``.npy`` file.
        images: The images, for their sizes.
        names: Ids, in the order of the store.
        batches: ``batches(finished=ids)`` yields batches of (id, probabilities or codes), in any order, of all ids but
            these and the blank ones. In place of an array it may yield its rows as parts, one after another; then it
            is called with ``rows``, too, where some images were not whole when the process died: id -> rows that are
            there.
        blank: Ids of images without content: their probability is 0.
        channels: Of the probabilities.
        key: Hash of what the probabilities depend on. With it every batch is kept if the process dies, and the same
            call continues after the last one.
    """
    shapes = [(name, (*images.shape(name), channels)) for name in names]
    writer = StoreWriter(path, shapes, dtype=np.uint16, key=key)
    begun = {"rows": dict(writer.rows)} if writer.rows else {}
    for batch in batches(finished=frozenset(writer.written), **begun):
        for name, value in batch:
            part = value if isinstance(value, Part) else Part(0, value)
            codes: UInt16[np.ndarray, "n w k"] = (
                part.probs if part.probs.dtype == np.uint16 else to_codes(part.probs)
            )
            if isinstance(value, Part):
                writer.write_rows(name, part.first, codes)
            else:
                writer.write(name, codes)
        writer.commit()
    for name in names:
        if name in blank:
            writer.write(name, np.zeros((*images.shape(name), channels), np.uint16))
    writer.close()
